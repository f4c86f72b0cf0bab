"""Questions about one shape on a small picture, without retrieval: easy-VQA.

python -m jcmr.launch --config=configs/xtra_easyvqa.py --workdir=runs/xtra_easyvqa \
    --config.data.dir=<folder with answers.txt>
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds where the data is there."""
    config = ConfigDict()
    config.task = "reader"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "easy_vqa"
    config.data.dir = ""
    config.data.dev_rate = 0.1
    config.data.max_words = 12
    config.data.group = 8
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.data.crop_size = 64
    config.data.random_resized_crop = False
    config.data.flip = True

    config.model = ConfigDict()
    config.model.image = "compact"
    config.model.vocab_size = 0
    config.model.num_answers = 0
    config.model.tower_widths = (16, 32, 64)
    config.model.pool = 8
    config.model.width = 64
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.hidden = 128

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 20
    main.optimizer = "adamw"
    main.learning_rate = 1e-3
    main.b2 = 0.98
    main.weight_decay = 0.01
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 32
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 25
    config.train.eval_epochs = 2
    config.train.checkpoint_steps = 200
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.best_metric = "dev/accuracy"
    config.eval.checkpoint = "last"

    if arg == "smoke":
        config.train.batch_size = 8
        config.model.width = 32
        config.model.hidden = 64
        config.model.num_layers = 1
        main.num_epochs = 1
        config.train.log_steps = 2
    elif arg:
        raise ValueError(f"xtra_easyvqa has :smoke, not :{arg}.")
    return config
