"""Cross-modal center loss on ModelNet40 with the hyperparameters of the official code.

python -m jcmr.launch --config=configs/center3d_modelnet40.py --config.data.dir=...

The official code counts every step twice: its "55000 iterations" are 27,500 steps of 96 objects,
and the learning rates fall after every 10,000. It starts from ImageNet weights and normalises by
the 24 objects of each of its four GPUs; here the batch of all devices is normalised together.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The official recipe; `:smoke` takes seconds, given data with small views."""
    config = ConfigDict()
    config.task = "center3d"
    config.seed = 0
    config.parallel = "pmap"

    config.data = ConfigDict()
    config.data.source = "modelnet"
    config.data.dir = ""
    config.data.points_dir = "modelnet40_ply_hdf5_2048"
    config.data.mesh_dir = "ModelNet40_Mesh"
    config.data.image_dir = "ModelNet40-Images-180"
    config.data.modalities = ("image", "points", "mesh")
    config.data.missing = "drop"
    config.data.num_points = 1024
    config.data.num_faces = 1024
    config.data.num_views = 2
    config.data.eval_views = (1, 2, 4)
    config.data.dev_views = (2,)
    config.data.image_size = 128
    config.data.parity = False
    config.data.workers = 8
    config.data.crop_size = 112
    config.data.random_resized_crop = (0.7, 1.0)
    config.data.flip = True
    config.data.augment_points = True
    config.data.augment_mesh = True

    config.model = ConfigDict()
    config.model.modalities = ("image", "points", "mesh")
    config.model.num_classes = 0
    config.model.features = 512
    config.model.hidden = 256
    config.model.image = "resnet18"
    config.model.views = "mean"
    config.model.k = 20
    config.model.point_embed_dim = 1024
    config.model.point_widths = (64, 64, 128, 256)
    config.model.mesh_structural = 131
    config.model.mesh_kernels = 64
    config.model.mesh_convolutions = ((256, 256), (512, 512))
    config.model.mesh_fused = 1024
    config.model.mesh_joined = 1024
    config.model.center_weight = 10.0
    config.model.mse_weight = 0.1
    config.model.center_update = "official"

    main = ConfigDict()
    main.name = "main"
    main.num_epochs = 270
    main.optimizer = "sgd"
    main.learning_rate = 1e-3
    main.momentum = 0.9
    main.weight_decay = 1e-3
    main.schedule = "steps"
    main.decay_epochs = (98, 196)
    main.decay_rate = 0.1
    main.clip_norm = 0.0
    main.plain = ("centers",)
    main.lr_scales = (("centers", 1.0),)

    config.train = ConfigDict()
    config.train.batch_size = 96
    config.train.stages = (main,)
    config.train.init_from = ""
    config.train.log_steps = 50
    config.train.eval_epochs = 10
    config.train.checkpoint_steps = 500
    config.train.keep_checkpoints = 2

    config.eval = ConfigDict()
    config.eval.batch_size = 96
    config.eval.tile = (512, 1024)
    config.eval.full_map = True
    config.eval.best_metric = "dev/views2/map"
    config.eval.checkpoint = "last"

    if arg == "smoke":
        config.data.num_points = 32
        config.data.num_faces = 64
        config.data.eval_views = (1, 2)
        config.data.image_size = 40
        config.data.workers = 0
        config.data.crop_size = 32
        config.model.features = 16
        config.model.hidden = 16
        config.model.image = "compact"
        config.model.k = 4
        config.model.point_embed_dim = 16
        config.model.point_widths = (8, 8, 8, 8)
        config.model.mesh_structural = 16
        config.model.mesh_kernels = 8
        config.model.mesh_convolutions = ((8, 8), (16, 16))
        config.model.mesh_fused = 16
        config.model.mesh_joined = 16
        main.num_epochs = 2
        main.decay_epochs = (1,)
        config.train.batch_size = 4
        config.train.log_steps = 1
        config.train.eval_epochs = 1
        config.train.checkpoint_steps = 2
    elif arg:
        raise ValueError(f"center3d_modelnet40 has :smoke, not :{arg}.")
    return config
