"""SCAN on Flickr30k from bottom-up region features: IMRAM of one step, LogSumExp over words.

Data as for imram_f30k, in --config.data.dir. Papers print ensembles of both directions, the mean of
their scores: train this config as runs/scan_t2i and `scan_f30k.py:i2t` as runs/scan_i2t, then

python -m jcmr.launch --mode=eval --config=configs/scan_f30k.py --workdir=runs/scan_t2i
  --config.eval.ensemble="('runs/scan_i2t',)"
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Words attend to regions; `:i2t` the other way round, `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "imram"
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
    config.model.vocab_size = 0
    config.model.word_dim = 300
    config.model.embed_dim = 1024
    config.model.variant = "text"
    config.model.steps = 1
    config.model.smooth = 9.0
    config.model.aggregate = "lse"
    config.model.lse_scale = 6.0
    config.model.margin = 0.2
    config.model.duplicates = "masked"
    config.model.chunk = 16

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 30
    main.optimizer = "adam"
    main.learning_rate = 2e-4
    main.schedule = "steps"
    main.decay_epochs = (15,)
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
    config.eval.tile = (128, 512)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"
    config.eval.ensemble = ()

    if arg == "i2t":
        config.model.variant = "image"
        config.model.smooth = 4.0
        config.model.lse_scale = 5.0
    elif arg == "smoke":
        config.data.min_count = 1
        config.model.word_dim = 8
        config.model.embed_dim = 8
        config.train.batch_size = 8
        main.num_epochs = 2
        config.train.log_steps = 1
    elif arg:
        raise ValueError(f"scan_f30k has :i2t and :smoke, not :{arg}.")
    return config
