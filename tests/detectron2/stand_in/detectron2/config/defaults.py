"""The defaults that the trainer reads."""

from . import CfgNode

_C = CfgNode(
    dict(
        VERSION=2,
        OUTPUT_DIR='./output',
        SEED=-1,
        MODEL=dict(WEIGHTS='', DEVICE='cuda'),
        DATASETS=dict(TRAIN=(), TEST=()),
        SOLVER=dict(
            BASE_LR=0.001,
            MOMENTUM=0.9,
            NESTEROV=False,
            WEIGHT_DECAY=0.0001,
            WEIGHT_DECAY_NORM=0.0,
            MAX_ITER=40000,
            STEPS=(30000,),
            GAMMA=0.1,
            WARMUP_ITERS=1000,
            WARMUP_FACTOR=0.001,
            CHECKPOINT_PERIOD=5000,
            AMP=dict(ENABLED=False),
            CLIP_GRADIENTS=dict(ENABLED=False, CLIP_TYPE='value', CLIP_VALUE=1.0, NORM_TYPE=2.0),
        ),
        TEST=dict(EVAL_PERIOD=0),
    )
)
