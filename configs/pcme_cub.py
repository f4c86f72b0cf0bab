"""PCME on CUB-200-2011 with the published hyperparameters (ResNet-50, GloVe, 10 + 50 epochs).

python -m jcmr.prepare cub --images=CUB_200_2011 --captions=text_c10 --splits=splits --out=data/cub
python -m jcmr.convert resnet --checkpoint=resnet50.pth --arch=resnet50 --at=image/backbone \
    --out=weights/resnet50
python -m jcmr.launch --config=configs/pcme_cub.py --config.data.dir=data/cub \
    --config.train.init_from=weights/resnet50 --config.train.glove=glove.840B.300d.txt

A batch has one image of each of the 150 training classes, so the number of devices divides 150.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:official` keeps the official code's mistakes, `:smoke` takes a minute."""
    config = ConfigDict()
    config.task = "pcme"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "cub"
    config.data.dir = ""
    config.data.vocabulary = ""
    config.data.min_count = 4
    config.data.max_words = 48
    config.data.image_size = 256
    config.data.whole_image = False
    config.data.strict = False
    config.data.workers = 8
    config.data.crop_size = 224
    config.data.random_resized_crop = False
    config.data.flip = False
    config.data.erasing_rate = 0.2
    config.data.token_drop_rate = 0.1

    config.model = ConfigDict()
    config.model.image = "resnet50"
    config.model.vocab_size = 0
    config.model.word_dim = 300
    config.model.embed_dim = 512
    config.model.num_samples = 7
    config.model.score = "matching_prob"
    config.model.init_shift = 5.0
    config.model.init_negative_scale = 5.0
    # The official weights are 1e-3 and 10, beside a sum over all pairs that is counted twice. Here
    # the matching loss is counted once, per caption of a batch of 150: 1e-3 / 2, and 10 / 2 / 150.
    config.model.vib_weight = 5e-4
    config.model.uniform_weight = 0.033
    config.model.parity = False
    config.model.dtype = "bfloat16"

    first = ConfigDict()
    first.name = "heads"
    first.num_epochs = 10
    first.optimizer = "adamp"
    first.learning_rate = 1e-4
    first.schedule = "cosine_epochs"
    first.schedule_epochs = 50
    first.clip_norm = 2.0
    first.no_clip = ("criterion",)
    first.frozen = ("image/backbone", "text/embed")

    second = ConfigDict()
    second.name = "all"
    second.num_epochs = 50
    second.optimizer = "adamp"
    second.learning_rate = 1e-4
    second.schedule = "cosine_epochs"
    second.clip_norm = 2.0
    second.no_clip = ("criterion",)

    config.train = ConfigDict()
    config.train.batch_size = 150
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
    config.eval.precision_ks = (5, 10, 50, 100)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "last"

    if arg == "official":
        config.model.parity = True
        config.model.vib_weight = 1e-3
        config.model.uniform_weight = 10.0
        config.data.max_words = 96
    elif arg == "smoke":
        config.data.workers = 0
        config.data.min_count = 1
        config.data.max_words = 16
        config.data.image_size = 72
        config.data.crop_size = 64
        config.model.image = "resnet18"
        config.model.word_dim = 16
        config.model.embed_dim = 16
        config.model.num_samples = 2
        config.model.dtype = "float32"
        config.train.batch_size = 4
        first.num_epochs = second.num_epochs = 1
        config.train.log_steps = 1
        config.train.eval_epochs = 1
        config.train.checkpoint_steps = 0
        config.eval.batch_size = 16
        config.eval.tile = (16, 64)
    elif arg:
        raise ValueError(f"pcme_cub has :official and :smoke, not :{arg}.")
    return config
