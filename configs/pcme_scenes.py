"""PCME on the embedded scenes: trains in five minutes on two CPU cores.

python -m jcmr.launch --config=configs/pcme_scenes.py --workdir=runs/pcme_scenes
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The demo compares by likelihood; `:sampled` is PCME, `:closed_form` PCME++, `:deterministic`
    their twin without uncertainty; `:smoke` takes seconds.
    """
    config = ConfigDict()
    config.task = "pcme"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "scenes"
    config.data.preset = "demo"
    config.data.num_train = 23_000
    config.data.num_test = 1_000
    config.data.captions_per_item = 2
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop_size = 48
    config.data.random_resized_crop = False
    config.data.flip = True
    config.data.resident = False  # True: the training set lies on the device

    config.model = ConfigDict()
    config.model.image = "compact"
    config.model.vocab_size = 0
    config.model.word_dim = 64
    config.model.embed_dim = 128
    config.model.method = "likelihood"
    config.model.score = "likelihood"
    config.model.spherical = True
    config.model.vagueness_penalty = 0.07
    config.model.num_samples = 4
    config.model.deterministic = False
    config.model.init_shift = 10.0
    config.model.init_negative_scale = 20.0
    config.model.log_scale_start = -5.0
    config.model.vib_weight = 1e-4
    config.model.readout = "mean"
    config.model.mask_true_positives = True

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 6
    main.optimizer = "adam"
    main.learning_rate = 5e-3
    main.b2 = 0.99
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 2.0
    main.lr_scales = (("criterion", 10.0),)
    main.no_clip = ("criterion",)

    config.train = ConfigDict()
    config.train.batch_size = 192
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 25
    config.train.eval_epochs = 3
    config.train.checkpoint_steps = 100
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (128, 512)
    config.eval.best_metric = "dev/t2i/hit@1"
    config.eval.checkpoint = "last"

    if arg == "sampled":
        config.model.method = "pcme"
        config.model.score = "matching_prob"
        config.model.spherical = False
        config.model.init_negative_scale = 10.0
        config.model.log_scale_start = -6.0
    elif arg == "closed_form":
        config.model.method = "pcmepp"
        config.model.score = "csd"
        config.model.spherical = False
        config.model.init_negative_scale = 10.0
        config.model.log_scale_start = -6.0
    elif arg == "deterministic":
        config.model.method = "infonce"
        config.model.score = "cosine"
        config.model.deterministic = True
    elif arg == "smoke":
        config.data.num_train = 256
        config.data.num_test = 40
        config.model.embed_dim = 32
        config.model.word_dim = 16
        main.num_epochs = 2
        config.train.batch_size = 64
        config.train.eval_epochs = 1
        config.train.log_steps = 2
        config.train.checkpoint_steps = 3
    elif arg:
        known = ":sampled, :closed_form, :deterministic and :smoke"
        raise ValueError(f"pcme_scenes has {known}, not :{arg}.")
    return config
