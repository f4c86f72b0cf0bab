"""IMRAM on the embedded scenes: the grid of the compact tower are the regions.

python -m jcmr.launch --config=configs/imram_scenes.py --workdir=runs/imram_scenes

All negatives count: from random towers, the hardest alone are hardly learned from.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "imram"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "scenes"
    config.data.preset = "demo"
    config.data.num_train = 24_000
    config.data.num_test = 500
    config.data.captions_per_item = 1
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop_size = 48
    config.data.random_resized_crop = False
    config.data.flip = True

    config.model = ConfigDict()
    config.model.image = "compact"
    config.model.vocab_size = 0
    config.model.word_dim = 64
    config.model.embed_dim = 64
    config.model.variant = "full"
    config.model.steps = 3
    config.model.smooth = 9.0
    config.model.margin = 0.2
    config.model.reduction = "mean"
    config.model.duplicates = "masked"
    config.model.mask_true_positives = True
    config.model.hardest = False
    config.model.chunk = 8

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 2
    main.optimizer = "adam"
    main.learning_rate = 1e-3
    main.b2 = 0.99
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 32
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 25
    config.train.eval_epochs = 2
    config.train.checkpoint_steps = 100
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (64, 512)
    config.eval.best_metric = "dev/t2i/hit@1"
    config.eval.checkpoint = "last"
    config.eval.ensemble = ()

    if arg == "smoke":
        config.data.num_train = 64
        config.data.num_test = 20
        config.model.steps = 2
        config.model.embed_dim = 16
        config.model.word_dim = 16
        config.train.batch_size = 16
        main.num_epochs = 1
        config.train.log_steps = 2
        config.train.checkpoint_steps = 3
    elif arg:
        raise ValueError(f"imram_scenes has :smoke, not :{arg}.")
    return config
