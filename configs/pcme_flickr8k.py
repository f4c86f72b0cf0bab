"""PCME on Flickr8k photos from frozen grid features, for a few hundred to a few thousand images.

Expects {train,dev,test}_ims.npy [images, cells, width] and _caps.txt in --config.data.dir:

python -m jcmr.launch --config=configs/pcme_flickr8k.py --config.data.dir=grid/flickr8k

Neural towers from scratch stay behind linear CCA on so little data, so these start as CCA (of the
mean grid cell against tf-idf topics of stemmed words), keep their means, and learn what CCA lacks:
how certain an embedding is, and how probable a match. Ridge and width were picked on folds of
train and dev; there, fine-tuning the means with InfoNCE gained nothing.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "pcme"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "precomp"
    config.data.dir = ""
    config.data.max_words = 40
    config.data.captions_per_item = 5
    config.data.stem = True

    config.model = ConfigDict()
    config.model.image = "regions"
    config.model.text = "bag"
    config.model.attention = False
    config.model.vocab_size = 0
    config.model.embed_dim = 150
    config.model.method = "pcmepp"
    config.model.score = "csd"
    config.model.init_shift = 5.0
    config.model.init_negative_scale = 5.0
    config.model.log_scale_start = -7.0
    config.model.vib_weight = 1e-4
    config.model.input_dropout_rate = 0.2

    main = ConfigDict()
    main.name = "uncertainty"
    main.num_epochs = 8
    main.optimizer = "adam"
    main.learning_rate = 1e-3
    main.schedule = "cosine"
    main.clip_norm = 2.0
    main.no_clip = ("criterion",)
    main.lr_scales = (("criterion", 10.0),)
    main.frozen = ("image/head/fc", "text/mean")

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.stages = (main,)
    config.train.init_from = "cca"
    config.train.cca = ConfigDict()
    config.train.cca.topics = 500
    config.train.cca.reg_image = 4.0
    config.train.cca.reg_text = 1.0
    config.train.log_steps = 20
    config.train.eval_epochs = 2
    config.train.checkpoint_steps = 0
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (128, 640)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"

    if arg == "smoke":
        config.model.embed_dim = 8
        config.train.batch_size = 8
        config.train.cca.topics = 10
        main.num_epochs = 2
        config.train.log_steps = 1
        config.train.eval_epochs = 1
    elif arg:
        raise ValueError(f"pcme_flickr8k has :smoke, not :{arg}.")
    return config
