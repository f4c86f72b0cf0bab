"""VQA 2.0 on precomputed features, with captions of other pictures where a retriever is given.

python -m jcmr.launch --config=configs/xtra_vqa2.py --workdir=runs/xtra_vqa2 \
    --config.data.dir=vqa2 --config.data.features=features \
    --config.retriever=runs/dxr_coco "--config.data.captions=('captions_train2014.json',)"

Without --config.retriever questions are answered from the picture alone.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds on small data."""
    config = ConfigDict()
    config.task = "reader"
    config.seed = 0
    config.parallel = "pmap"
    config.retriever = ""

    config.lookup = ConfigDict()
    config.lookup.num = 10
    config.lookup.mode = "retrieved"
    config.lookup.pictures = False
    config.lookup.batch_size = 256

    config.data = ConfigDict()
    config.data.source = "vqa2"
    config.data.dir = ""
    config.data.features = ""
    config.data.captions = ()
    config.data.num_answers = 3129
    config.data.dev_rate = 0.05

    config.model = ConfigDict()
    config.model.image = "regions"
    config.model.grid = False
    config.model.normalise_regions = True
    config.model.vocab_size = 0
    config.model.num_answers = 0
    config.model.width = 512
    config.model.num_layers = 4
    config.model.num_heads = 8
    config.model.hidden = 2048
    config.model.fusion = "concat"
    config.model.dropout_rate = 0.1

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 13
    main.optimizer = "adamw"
    main.learning_rate = 1e-4
    main.weight_decay = 0.01
    main.schedule = "cosine"
    main.warmup_steps = 2_000
    main.clip_norm = 1.0

    config.train = ConfigDict()
    config.train.batch_size = 256
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 100
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 1_000
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.best_metric = ""
    config.eval.checkpoint = "last"

    if arg == "smoke":
        config.train.batch_size = 8
        config.model.width = 32
        config.model.hidden = 64
        config.model.num_layers = 1
        config.model.num_heads = 4
        main.num_epochs = 2
        main.warmup_steps = 2
        config.train.log_steps = 2
        config.lookup.num = 4
    elif arg:
        raise ValueError(f"xtra_vqa2 has :smoke, not :{arg}.")
    return config
