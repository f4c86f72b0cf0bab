"""GCN text path on the embedded scenes: the graph of the captions' words, own pairs as matches.

python -m jcmr.launch --config=configs/gcn_scenes.py --workdir=runs/gcn_scenes

No labels are used. A bag of words does not say which colour belongs to which shape, so this system
cannot tell all scenes apart; the recurrent ones can.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "gcn_text"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "scenes"
    config.data.preset = "demo"
    config.data.num_train = 24_000
    config.data.num_test = 1_000
    config.data.captions_per_item = 1
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop_size = 48
    config.data.random_resized_crop = False
    config.data.flip = True

    config.model = ConfigDict()
    config.model.image = "compact"
    config.model.text = "gcn"
    config.model.text_hidden = (256,)
    config.model.image_hidden = (256,)
    config.model.vocab_size = 0
    config.model.weighting = "counts"
    config.model.graph = ConfigDict()
    config.model.graph.neighbours = 8
    config.model.graph.vectors = "ppmi"
    config.model.graph.dim = 32
    config.model.graph.cooccurrence = 0
    config.model.embed_dim = 128
    config.model.residual = False
    config.model.score = "bilinear"
    config.model.pair_weight = 1.0
    config.model.gap_weight = 3.0
    config.model.margin = 3.0

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 3
    main.optimizer = "adam"
    main.learning_rate = 3e-3
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 2.0

    config.train = ConfigDict()
    config.train.batch_size = 64
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 25
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 100
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (128, 512)
    config.eval.best_metric = "dev/t2i/hit@1"
    config.eval.checkpoint = "last"

    if arg == "smoke":
        config.data.num_train = 256
        config.data.num_test = 40
        config.model.embed_dim = 32
        config.model.image_hidden = (16,)
        config.model.text_hidden = (16,)
        main.num_epochs = 2
        config.train.log_steps = 2
        config.train.checkpoint_steps = 3
    elif arg:
        raise ValueError(f"gcn_scenes has :smoke, not :{arg}.")
    return config
