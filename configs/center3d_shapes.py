"""Cross-modal center loss on the embedded solids: trains in minutes on two CPU cores.

python -m jcmr.launch --config=configs/center3d_shapes.py --workdir=runs/center3d_shapes
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The demo; `:ce` and `:ce_center` leave parts of the objective out, `:smoke` takes seconds."""
    config = ConfigDict()
    config.task = "center3d"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "shapes"
    config.data.preset = "demo"
    config.data.num_train = 2400
    config.data.num_test = 600
    config.data.num_views = 2
    config.data.num_points = 256
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop_size = 48
    config.data.random_resized_crop = False
    config.data.flip = True
    config.data.augment_points = True
    config.data.augment_mesh = True

    config.model = ConfigDict()
    config.model.modalities = ("image", "points", "mesh")
    config.model.num_classes = 0
    config.model.features = 128
    config.model.hidden = 64
    config.model.image = "compact"
    config.model.views = "mean"
    config.model.k = 10
    config.model.point_embed_dim = 128
    config.model.point_widths = (32, 32, 64, 64)
    config.model.mesh_structural = 64
    config.model.mesh_kernels = 32
    config.model.mesh_convolutions = ((64, 64), (128, 128))
    config.model.mesh_fused = 128
    config.model.mesh_joined = 256
    config.model.center_weight = 0.1
    config.model.mse_weight = 0.1
    config.model.center_update = "normalised"

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 5
    main.optimizer = "adam"
    main.learning_rate = 3e-3
    main.b2 = 0.99
    main.schedule = "cosine"
    main.warmup_steps = 50
    main.clip_norm = 10.0
    main.plain = ("centers",)
    main.no_clip = ("centers",)
    main.lr_scales = (("centers", 100.0),)

    config.train = ConfigDict()
    config.train.batch_size = 48
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 25
    config.train.eval_epochs = 2
    config.train.checkpoint_steps = 200
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 100
    config.eval.tile = (256, 1024)
    config.eval.full_map = True
    config.eval.best_metric = "dev/views2/map"
    config.eval.checkpoint = "last"

    if arg == "ce":
        config.model.center_weight = 0.0
        config.model.mse_weight = 0.0
    elif arg == "ce_center":
        config.model.mse_weight = 0.0
    elif arg == "smoke":
        config.data.num_train = 48
        config.data.num_test = 24
        config.data.stored_views = 4
        config.data.stored_points = 64
        config.data.num_points = 64
        config.model.features = 16
        config.model.hidden = 16
        config.model.k = 4
        config.model.point_embed_dim = 16
        config.model.point_widths = (8, 8)
        config.model.mesh_structural = 16
        config.model.mesh_kernels = 8
        config.model.mesh_convolutions = ((8, 8),)
        config.model.mesh_fused = 16
        config.model.mesh_joined = 16
        main.num_epochs = 2
        config.train.batch_size = 24
        config.train.log_steps = 2
        config.train.eval_epochs = 1
        config.train.checkpoint_steps = 3
    elif arg:
        raise ValueError(f"center3d_shapes has :ce, :ce_center and :smoke, not :{arg}.")
    return config
