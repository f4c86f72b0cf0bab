"""IMRAM on Flickr8k photos from frozen grid features, for a few hundred to a few thousand images.

Expects {train,dev,test}_ims.npy [images, cells, width] and _caps.txt:

python -m jcmr.launch --config=configs/imram_flickr8k_grid.py --config.data.dir=grid/flickr8k

Neural towers from scratch stay behind linear CCA on so little data, so regions and words start as
those of CCA (of the mean grid cell against tf-idf topics of stemmed words), and every grid cell
looks for itself among the words. On the development split sharper attention scored less, and a
second step, its gate trained for an epoch, the same. Learning at a rate of 5e-4 lost what CCA knew;
one epoch at 3e-5 keeps it, and gained less than that split can tell.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "imram"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "precomp"
    config.data.dir = ""
    config.data.max_words = 40
    config.data.captions_per_item = 1
    config.data.stem = True

    config.model = ConfigDict()
    config.model.text = "words"
    config.model.vocab_size = 0
    config.model.embed_dim = 150
    config.model.variant = "image"
    config.model.steps = 1
    config.model.smooth = 0.3
    config.model.attention_norm = "no_norm"
    config.model.unit_words = False
    config.model.dropout_rate = 0.2
    config.model.margin = 0.2
    config.model.duplicates = "masked"
    config.model.chunk = 8

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 1
    main.optimizer = "adam"
    main.learning_rate = 3e-5
    main.schedule = "cosine"
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 64
    config.train.stages = (main,)
    config.train.init_from = "cca"
    config.train.cca = ConfigDict()
    config.train.cca.topics = 500
    config.train.cca.reg_image = 4.0
    config.train.cca.reg_text = 1.0
    config.train.log_steps = 10
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 0
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (128, 640)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"
    config.eval.ensemble = ()

    if arg == "smoke":
        config.model.embed_dim = 8
        config.train.batch_size = 8
        config.train.cca.topics = 10
        main.num_epochs = 2
        config.train.log_steps = 1
    elif arg:
        raise ValueError(f"imram_flickr8k_grid has :smoke, not :{arg}.")
    return config
