"""The GCN text path with the settings of the official code of SCKR, for CMPlaces features.

Expects one file with image_* [n, 4096] (VGG-19 relu7), text_* [n, words, 50] (features of each word
of the vocabulary in a document) and labels_* of train and test:

python -m jcmr.launch --config=configs/gcn_cmplaces.py --config.data.file=cmplaces.npz

As in that code: three taps, two convolutions of one filter, 1024 dimensions, a dropped-out product
as metric, the pairwise global loss with lambda 0.35 and mu 0.8, Adam at 1e-4 times 0.95 an epoch,
128 items a batch, 50 epochs. Unlike there: all pairs of a batch count, the checkpoint is chosen on
held-out training pairs, and the graph is made from the training texts where no vectors are given.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "gcn_text"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "features"
    config.data.file = ""
    config.data.image = ("image",)
    config.data.text = ("text",)
    config.data.supervision = "supervised"
    config.data.dev_rate = 0.1

    config.model = ConfigDict()
    config.model.parity = True
    config.model.image = "features"
    config.model.text = "gcn"
    config.model.vocab_size = 0
    config.model.num_classes = 0
    config.model.graph = ConfigDict()
    config.model.graph.neighbours = 8
    config.model.graph.vectors = "ppmi"
    config.model.graph.dim = 50
    config.model.graph.cooccurrence = 0
    config.model.embed_dim = 1024
    config.model.pair_weight = 1.0

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 50
    main.optimizer = "adam"
    main.learning_rate = 1e-4
    main.schedule = "steps"
    main.decay_epochs = tuple(range(1, 50))
    main.decay_rate = 0.95

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 50
    config.train.eval_epochs = 5
    config.train.checkpoint_steps = 0
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (128, 1024)
    config.eval.relations = ("class",)
    config.eval.full_map = True
    config.eval.map_ks = (100,)
    config.eval.best_metric = "dev/i2t/map"
    config.eval.checkpoint = "best"

    if arg == "smoke":
        config.train.batch_size = 16
        main.num_epochs = 2
        main.decay_epochs = (1,)
        config.train.log_steps = 2
    elif arg:
        raise ValueError(f"gcn_cmplaces has :smoke, not :{arg}.")
    return config
