"""IMRAM on Flickr30k from bottom-up region features: full, three steps.

Expects {train,dev,test}_ims.npy (or _feat.npy) [images, 36, 2048] and _caps.txt, the files that
were published with SCAN:

python -m jcmr.launch --config=configs/imram_f30k.py --config.data.dir=f30k_precomp

The recipe is that of the official script with the variant and number of steps of the paper's best
rows. `--config.data.vocabulary=f30k_precomp_vocab.json` keeps the official word ids.
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
    config.data.max_words = 50
    config.data.captions_per_item = 1
    config.data.vocabulary = ""
    config.data.min_count = 4

    config.model = ConfigDict()
    config.model.vocab_size = 0
    config.model.word_dim = 300
    config.model.embed_dim = 1024
    config.model.variant = "full"
    config.model.steps = 3
    config.model.smooth = 9.0
    config.model.margin = 0.2
    config.model.duplicates = "masked"
    config.model.chunk = 4

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

    if arg == "smoke":
        config.data.min_count = 1
        config.model.word_dim = 8
        config.model.embed_dim = 8
        config.train.batch_size = 8
        main.num_epochs = 2
        config.train.log_steps = 1
    elif arg:
        raise ValueError(f"imram_f30k has :smoke, not :{arg}.")
    return config
