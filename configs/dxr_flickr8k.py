"""DXR on Flickr8k photos from frozen grid features, for a few hundred to a few thousand images.

It starts near linear CCA; from random parameters a transformer learns little from so few. Expects
{train,dev,test}_ims.npy [images, cells, width] and _caps.txt in --config.data.dir:

python -m jcmr.launch --config=configs/dxr_flickr8k.py --config.data.dir=grid/flickr8k
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "dxr"
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
    config.model.text = "words"
    config.model.vocab_size = 0
    config.model.word_dim = 128
    config.model.embed_dim = 128
    config.model.num_layers = 1
    config.model.num_heads = 4
    config.model.hidden = 256
    config.model.input_dropout_rate = 0.3
    config.model.dropout_rate = 0.1
    config.model.loss = "infonce"
    config.model.init_scale = 10.0

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 5
    main.optimizer = "adam"
    main.learning_rate = 3e-4
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

    if arg == "smoke":
        config.model.word_dim = 8
        config.model.embed_dim = 8
        config.model.hidden = 8
        config.train.batch_size = 8
        config.train.cca.topics = 10
        main.num_epochs = 2
        config.train.log_steps = 1
    elif arg:
        raise ValueError(f"dxr_flickr8k has :smoke, not :{arg}.")
    return config
