"""PCME on MS-COCO captions with the published hyperparameters (ResNet-152, GloVe, 30 + 30 epochs).

python -m jcmr.prepare coco --images=coco --annotations=coco/annotations --out=data/coco
python -m jcmr.convert resnet --checkpoint=resnet152.pth --arch=resnet152 --at=image/backbone \
    --out=weights/resnet152
python -m jcmr.launch --config=configs/pcme_coco.py --config.data.dir=data/coco \
    --config.train.init_from=weights/resnet152 --config.train.glove=glove.840B.300d.txt

Add --config.data.eccv_dir=eccv_caption/data to evaluate on ECCV Caption and CxC too.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:official` keeps the official code's mistakes, `:smoke` takes a minute."""
    config = ConfigDict()
    config.task = "pcme"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "coco"
    config.data.dir = ""
    config.data.eccv_dir = ""
    config.data.vocabulary = ""
    config.data.min_count = 4
    config.data.max_words = 32
    config.data.image_size = 256
    config.data.strict = False
    config.data.workers = 8
    config.data.crop_size = 224
    config.data.random_resized_crop = True
    config.data.flip = True
    config.data.erasing_rate = 0.2
    config.data.token_drop_rate = 0.1
    config.data.resident = False  # True: 24 GB on every device, and no words dropped

    config.model = ConfigDict()
    config.model.image = "resnet152"
    config.model.vocab_size = 0
    config.model.word_dim = 300
    config.model.embed_dim = 1024
    config.model.num_samples = 7
    config.model.score = "matching_prob"
    config.model.init_shift = 15.0
    config.model.init_negative_scale = 15.0
    # Half the official weight, as the matching loss beside it is counted once, not twice.
    config.model.vib_weight = 5e-6
    config.model.uniform_weight = 0.0
    config.model.parity = False
    config.model.dtype = "bfloat16"
    # For batches that do not fit: rows of the loss at a time, images in the towers at a time, and
    # blocks of the ResNet computed again for the gradient.
    config.model.chunk = 0
    config.model.tower_chunk = 0
    config.model.remat = False

    first = ConfigDict()
    first.name = "heads"
    first.num_epochs = 30
    first.optimizer = "adamp"
    first.learning_rate = 2e-4
    first.schedule = "cosine_epochs"
    first.clip_norm = 2.0
    first.no_clip = ("criterion",)
    first.frozen = ("image/backbone", "text/embed")

    second = ConfigDict()
    second.name = "all"
    second.num_epochs = 30
    second.optimizer = "adamp"
    second.learning_rate = 2e-5
    second.schedule = "cosine_epochs"
    second.clip_norm = 2.0
    second.no_clip = ("criterion",)

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.accumulate = 1  # parts of a batch; items are compared within a part
    config.train.stages = (first, second)
    config.train.init_from = ""
    config.train.glove = ""
    config.train.log_steps = 100
    config.train.eval_epochs = 10
    config.train.checkpoint_steps = 2000
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (64, 512)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"

    if arg == "official":
        config.model.parity = True
        config.model.vib_weight = 1e-5
        config.data.max_words = 64
    elif arg == "smoke":
        config.data.workers = 0
        config.data.min_count = 1
        config.data.max_words = 16
        config.data.image_size = 72
        config.data.crop_size = 64
        config.model.image = "compact"
        config.model.word_dim = 16
        config.model.embed_dim = 16
        config.model.num_samples = 2
        config.model.dtype = "float32"
        config.train.batch_size = 8
        first.num_epochs = second.num_epochs = 1
        config.train.log_steps = 1
        config.train.eval_epochs = 1
        config.train.checkpoint_steps = 0
        config.eval.batch_size = 16
        config.eval.tile = (16, 64)
    elif arg:
        raise ValueError(f"pcme_coco has :official and :smoke, not :{arg}.")
    return config
