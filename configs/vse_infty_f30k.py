"""VSE-infinity on Flickr30k from bottom-up region features: learned pooling, no cross-attention.

Data as for imram_f30k:

python -m jcmr.launch --config=configs/vse_infty_f30k.py --config.data.dir=f30k_precomp
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:vsepp` is VSE++ on the same data, `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "vse"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "precomp"
    config.data.dir = ""
    config.data.max_words = 50
    config.data.captions_per_item = 1
    config.data.vocabulary = ""
    config.data.min_count = 4

    config.model = ConfigDict()
    config.model.method = "vse_infty"
    config.model.vocab_size = 0
    config.model.word_dim = 300
    config.model.embed_dim = 1024
    config.model.region_drop_rate = 0.2
    config.model.word_drop_rate = 0.2
    config.model.margin = 0.2
    config.model.warmup_steps = 1132
    config.model.duplicates = "masked"

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 25
    main.optimizer = "adamw"
    main.learning_rate = 5e-4
    main.schedule = "steps"
    main.decay_epochs = (15,)
    main.weight_decay = 0.01
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 100
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 1000
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (1000, 5000)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"
    config.eval.ensemble = ()

    if arg == "vsepp":
        config.model.method = "vsepp"
        config.model.region_drop_rate = config.model.word_drop_rate = 0.0
        config.model.warmup_steps = 0
        main.optimizer = "adam"
        main.learning_rate = 2e-4
        main.weight_decay = 0.0
        main.num_epochs = 30
    elif arg == "smoke":
        config.data.min_count = 1
        config.model.word_dim = 8
        config.model.embed_dim = 8
        config.train.batch_size = 8
        main.num_epochs = 2
        config.train.log_steps = 1
        config.model.warmup_steps = 1
    elif arg:
        raise ValueError(f"vse_infty_f30k has :vsepp and :smoke, not :{arg}.")
    return config
