"""DXR on MS-COCO captions: ResNet-152 and BERT-base, both fine-tuned at a tenth of the rate.

python -m jcmr.prepare coco --images=coco --annotations=coco/annotations --out=data/coco
python -m jcmr.convert resnet --checkpoint=resnet152.pth --arch=resnet152 --out=weights/resnet152
python -m jcmr.convert bert --checkpoint=model.safetensors --out=weights/bert
python -m jcmr.launch --config=configs/dxr_coco.py --config.data.dir=data/coco \
    --config.data.vocabulary=vocab.txt

The last file, like the checkpoint before it, is that of bert-base-uncased. Learning rate, warm-up,
batch and number of updates are those of the authors' published precursor (pull request 381 of
https://github.com/facebookresearch/mmf); those of the final model are not published.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; `:official` has the official code's conventions, `:smoke` takes a minute."""
    config = ConfigDict()
    config.task = "dxr"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "coco"
    config.data.dir = ""
    config.data.eccv_dir = ""
    config.data.min_count = 1
    config.data.vocabulary = "vocab.txt"
    config.data.max_words = 48
    config.data.captions_per_item = 2
    config.data.image_size = 256
    config.data.strict = False
    config.data.workers = 8
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop_size = 224
    config.data.random_resized_crop = True
    config.data.flip = True

    config.model = ConfigDict()
    config.model.image = "resnet152"
    config.model.text = "bert"
    config.model.bert = "base"
    config.model.vocab_size = 0
    config.model.embed_dim = 512
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.hidden = 2048
    config.model.dropout_rate = 0.1
    config.model.margin = 0.2
    config.model.warmup_steps = 2000
    config.model.duplicates = "masked"
    config.model.parity = False
    config.model.dtype = "bfloat16"

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 21
    main.optimizer = "adamw"
    main.learning_rate = 5e-5
    main.weight_decay = 0.01
    main.no_decay = ("bias$", "scale$")
    main.schedule = "cosine"
    main.warmup_steps = 2000
    main.lr_scales = (("image/backbone", 0.1), ("text/bert", 0.1))

    config.train = ConfigDict()
    config.train.batch_size = 240
    config.train.stages = (main,)
    config.train.init_from = (
        ("image/backbone", "weights/resnet152"),
        ("text/bert", "weights/bert"),
    )
    config.train.log_steps = 100
    config.train.eval_epochs = 1
    config.train.checkpoint_steps = 1000
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 128
    config.eval.tile = (1000, 5000)
    config.eval.best_metric = "dev/rsum"
    config.eval.checkpoint = "best"

    if arg == "official":
        config.model.parity = True
        config.data.max_words = 128
        config.data.captions_per_item = 1
        config.data.mean = (0.468, 0.445, 0.407)
        config.data.std = (0.122, 0.121, 0.144)
        config.data.random_resized_crop = False
        config.data.flip = False
        main.num_epochs = 13
    elif arg == "smoke":
        config.data.workers = 0
        config.data.vocabulary = ""
        config.data.min_count = 1
        config.data.max_words = 16
        config.data.image_size = 72
        config.data.crop_size = 64
        config.model.image = "resnet18"
        config.model.bert = "tiny"
        config.model.embed_dim = 16
        config.model.hidden = 32
        config.model.num_layers = 1
        config.model.warmup_steps = 2
        config.model.dtype = "float32"
        config.train.batch_size = 8
        config.train.init_from = ()
        main.num_epochs = 1
        main.warmup_steps = 2
        config.train.log_steps = 1
        config.train.checkpoint_steps = 0
        config.eval.batch_size = 16
        config.eval.tile = (16, 64)
    elif arg:
        raise ValueError(f"dxr_coco has :official and :smoke, not :{arg}.")
    return config
