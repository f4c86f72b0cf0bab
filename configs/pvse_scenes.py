"""PVSE on the embedded scenes: the towers of GPLDAN, the best pair of representations, its losses.

python -m jcmr.launch --config=configs/pvse_scenes.py --workdir=runs/pvse_scenes

Weights of the losses and margin are those of the official recipe for COCO. All negatives count:
from random towers, the hardest alone (hit@1 t2i .05) draw all representations to one place.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "gpldan"
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
    config.model.text = "words"
    config.model.vocab_size = 0
    config.model.word_dim = 64
    config.model.embed_dim = 128
    config.model.num_reps = 4
    config.model.method = "pvse"
    config.model.hard = False
    config.model.margin = 0.1
    config.model.diversity_weight = 0.1
    config.model.mmd_weight = 0.01

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 3
    main.optimizer = "adam"
    main.learning_rate = 1e-3
    main.b2 = 0.98
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
        config.model.word_dim = 16
        main.num_epochs = 2
        config.train.log_steps = 2
        config.train.checkpoint_steps = 3
    elif arg:
        raise ValueError(f"pvse_scenes has :smoke, not :{arg}.")
    return config
