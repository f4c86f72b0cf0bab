"""Questions about scenes that only retrieved captions answer, before and after an index is swapped.

python -m jcmr.launch --config=configs/xtra_scenes.py --workdir=runs/xtra_scenes

Trains a small retriever first, in <workdir>/retriever; --config.retriever=WORKDIR takes another.
"""

from ml_collections import ConfigDict


def shrink(data: ConfigDict, train: ConfigDict) -> None:
    """Makes a run take seconds."""
    data.num_train = 256
    data.num_test = 40
    data.num_distractors = 20
    data.num_worlds = 2
    train.log_steps = 2
    train.checkpoint_steps = 3


def retriever(track: str, image_size: int, smoke: bool) -> ConfigDict:
    """Pictures that find cards of facts before ordinary captions."""
    config = ConfigDict()
    config.task = "pcme"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "scenes_cards"
    config.data.track = track
    config.data.num_train = 24_000
    config.data.num_questions = 4
    config.data.num_test = 1_000
    config.data.num_worlds = 8
    config.data.num_distractors = 4_000
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop_size = image_size
    config.data.random_resized_crop = False
    config.data.flip = True

    config.model = ConfigDict()
    config.model.image = "compact"
    config.model.vocab_size = 0
    config.model.word_dim = 64
    config.model.embed_dim = 128
    config.model.method = "infonce"
    config.model.score = "cosine"
    config.model.deterministic = True
    config.model.init_negative_scale = 20.0
    config.model.readout = "mean"
    config.model.mask_true_positives = True

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 5
    main.optimizer = "adam"
    main.learning_rate = 3e-3
    main.b2 = 0.99
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 2.0
    main.lr_scales = (("criterion", 10.0),)
    main.no_clip = ("criterion",)

    config.train = ConfigDict()
    config.train.batch_size = 64
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 25
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 100
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.tile = (128, 1024)
    config.eval.precision_ks = (8,)
    config.eval.best_metric = ""
    config.eval.checkpoint = "last"

    if smoke:
        shrink(config.data, config.train)
        config.model.embed_dim = 32
        config.model.word_dim = 16
        main.num_epochs = 1
    return config


def get_config(arg: str = "") -> ConfigDict:
    """One object in the middle; `:multi` has two or three on a grid, `:smoke` takes seconds."""
    track = "multi" if arg == "multi" else "solo"
    image_size = 48 if arg == "multi" else 32
    config = ConfigDict()
    config.task = "reader"
    config.seed = 0
    config.parallel = "pmap"
    config.retriever = ""
    config.small_retriever = retriever(track, image_size, smoke=arg == "smoke")

    config.lookup = ConfigDict()
    config.lookup.num = 16 if arg == "multi" else 8
    config.lookup.mode = "retrieved"
    config.lookup.pictures = False
    # One vector does not tell which of several objects is asked about.
    config.lookup.question_weight = 0.5 if arg == "multi" else 0.0
    config.lookup.share_tower = arg in ("multi", "smoke")
    config.lookup.batch_size = 256

    config.data = ConfigDict()
    config.data.source = "scenes_vqa"
    config.data.track = track
    config.data.num_train = 24_000
    config.data.num_questions = 4
    config.data.num_test = 1_000
    config.data.num_worlds = 8
    config.data.num_distractors = 4_000
    config.data.group = 4
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop_size = image_size
    config.data.random_resized_crop = False
    config.data.flip = True

    config.model = ConfigDict()
    config.model.image = "compact"
    config.model.pool = 2
    config.model.vocab_size = 0
    config.model.num_answers = 0
    config.model.width = 64
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.hidden = 256
    config.model.fusion = "concat"
    config.model.max_caption_words = 208 if arg == "multi" else 0
    config.model.no_caption_rate = 0.2
    config.model.other_caption_rate = 0.1

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 3
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
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 100
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.best_metric = "dev/held_out/index_a/accuracy"
    config.eval.checkpoint = "last"

    if arg == "smoke":
        shrink(config.data, config.train)
        config.model.width = 32
        config.model.hidden = 64
        config.model.num_layers = 1
        config.lookup.num = 4
        main.num_epochs = 2
    elif arg not in ("", "multi"):
        raise ValueError(f"xtra_scenes has :multi and :smoke, not :{arg}.")
    return config
