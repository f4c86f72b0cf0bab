"""GCN text path on Wikipedia image-text features (2,173 training and 693 test pairs, 10 classes).

Expects one file with image_*, tfidf_*, lda_* and labels_* of train and test; see the README.

python -m jcmr.launch --config=configs/gcn_wikipedia.py --config.data.file=wikipedia.npz

Labels are used in training. Features and losses were picked by cross-validation on the training
pairs. In some seeds a ReLU filter of a convolution is 0 on all words from the start, so the default
lets the words themselves pass beside the graph: over three seeds and five folds mean mAP is .305
with that and .239 without. Test had been looked at three times before that was found, with the
configuration without; nothing was chosen by it. `:paper` is the pairwise global loss and bilinear
metric of the paper's line of work, without that.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:paper`, and `:smoke`, which takes seconds."""
    config = ConfigDict()
    config.task = "gcn_text"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "features"
    config.data.file = ""
    config.data.image = ("image",)
    config.data.text = ("tfidf", "lda")
    config.data.image_transform = "chi2"
    config.data.text_transform = "sqrt"
    config.data.supervision = "supervised"
    config.data.dev_rate = 0.0
    config.data.dev_fold = 0

    config.model = ConfigDict()
    config.model.image = "features"
    config.model.image_hidden = (512,)
    config.model.text = "gcn"
    config.model.text_hidden = (512,)
    config.model.vocab_size = 0
    config.model.num_classes = 0
    config.model.graph = ConfigDict()
    config.model.graph.neighbours = 8
    config.model.graph.vectors = "columns"
    config.model.graph.cooccurrence = 0
    config.model.embed_dim = 256
    config.model.residual = True
    config.model.score = "posterior"
    config.model.pair_weight = 0.0
    config.model.gap_weight = 0.35
    config.model.margin = 0.8
    config.model.class_weight = 1.0
    config.model.agree_weight = 1.0
    config.model.image_dropout_rate = 0.0
    config.model.text_dropout_rate = 0.0
    config.model.hidden_dropout_rate = 0.5

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 30
    main.optimizer = "adam"
    main.learning_rate = 1e-3
    main.schedule = "cosine"
    main.weight_decay = 0.0

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
    config.eval.relations = ("class",)
    config.eval.full_map = True
    config.eval.map_ks = (50, 100)
    config.eval.best_metric = ""
    config.eval.checkpoint = "last"

    if arg == "paper":
        config.model.image_hidden = ()
        config.model.text_hidden = ()
        config.model.embed_dim = 1024
        config.model.residual = False
        config.model.score = "bilinear"
        config.model.pair_weight = 1.0
        config.model.class_weight = 0.0
        config.model.agree_weight = 0.0
        config.model.hidden_dropout_rate = 0.0
    elif arg == "smoke":
        config.model.image_hidden = (16,)
        config.model.text_hidden = (16,)
        config.model.embed_dim = 8
        config.train.batch_size = 16
        main.num_epochs = 2
    elif arg:
        raise ValueError(f"gcn_wikipedia has :paper and :smoke, not :{arg}.")
    return config
