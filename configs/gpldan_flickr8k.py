"""GPLDAN on Flickr8k photos from frozen grid features, without labels.

Expects {train,dev,test}_ims.npy [images, cells, width] and _caps.txt in --config.data.dir:

python -m jcmr.launch --config=configs/gpldan_flickr8k.py --config.data.dir=grid/flickr8k
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:pvse` is its baseline, `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "gpldan"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "precomp"
    config.data.dir = ""
    config.data.max_words = 40
    config.data.captions_per_item = 1
    config.data.stem = True

    config.model = ConfigDict()
    config.model.image = "regions"
    config.model.text = "words"
    config.model.vocab_size = 0
    config.model.word_dim = 300
    config.model.embed_dim = 256
    config.model.num_reps = 4
    config.model.method = "gpldan"
    config.model.interaction = True
    config.model.pattern_weight = 1.0
    config.model.hard = False
    config.model.classifier_weight = 0.1
    config.model.fuse_weight = 1.0
    config.model.temperature = 0.1
    config.model.dropout_rate = 0.1
    config.model.input_dropout_rate = 0.2

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 15
    main.optimizer = "adam"
    main.learning_rate = 5e-4
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 20
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 0
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (128, 640)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"

    if arg == "pvse":
        config.model.method = "pvse"
        config.model.hard = True
    elif arg == "smoke":
        config.model.embed_dim = 16
        config.model.word_dim = 8
        config.train.batch_size = 8
        main.num_epochs = 2
        config.train.log_steps = 1
        config.train.eval_epochs = 1
    elif arg:
        raise ValueError(f"gpldan_flickr8k has :pvse and :smoke, not :{arg}.")
    return config
