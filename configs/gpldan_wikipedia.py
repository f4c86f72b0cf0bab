"""GPLDAN on Wikipedia image-text features, without labels (2,173 training and 693 test pairs).

Expects one file with image_*, lda_* and labels_* of train and test; see the README. Labels are
read by the evaluation alone.

python -m jcmr.launch --config=configs/gpldan_wikipedia.py --config.data.file=wikipedia.npz

Settings were compared without labels, by how often the own pair is among the nearest tenth on
held-out training pairs; only a few were tried.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:pvse` is its baseline, `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "gpldan"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "features"
    config.data.file = ""
    config.data.image = ("image",)
    config.data.text = ("lda",)
    config.data.image_transform = "chi2"
    config.data.text_transform = "sqrt"
    config.data.supervision = "unsupervised"
    config.data.dev_rate = 0.0
    config.data.dev_fold = 0

    config.model = ConfigDict()
    config.model.image = "features"
    config.model.text = "features"
    config.model.num_tokens = 8
    config.model.token_dim = 64
    config.model.embed_dim = 128
    config.model.num_reps = 4
    config.model.method = "gpldan"
    config.model.interaction = True
    config.model.pattern_weight = 1.0
    config.model.classifier_weight = 0.1
    config.model.fuse_weight = 1.0
    config.model.temperature = 0.2
    config.model.hard = False
    config.model.dropout_rate = 0.0
    config.model.input_dropout_rate = 0.0

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 20
    main.optimizer = "adam"
    main.learning_rate = 3e-4
    main.schedule = "cosine"
    main.weight_decay = 0.0
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 16
    config.train.eval_epochs = 0
    config.train.checkpoint_steps = 0
    config.train.keep_checkpoints = 1

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.tile = (256, 1024)
    config.eval.full_map = True
    config.eval.map_ks = (50, 100)
    config.eval.best_metric = ""
    config.eval.checkpoint = "last"

    if arg == "pvse":
        config.model.method = "pvse"
        config.model.hard = True
    elif arg == "smoke":
        config.model.token_dim = 8
        config.model.embed_dim = 16
        config.train.batch_size = 16
        main.num_epochs = 2
    elif arg:
        raise ValueError(f"gpldan_wikipedia has :pvse and :smoke, not :{arg}.")
    return config
