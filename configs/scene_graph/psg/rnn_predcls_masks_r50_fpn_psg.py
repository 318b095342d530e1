_base_ = ['./rnn_predcls_r50_fpn_psg.py']
# Evaluated by masks, as PSG is published (OpenPSG's rule). match='single_mask' is the corrected
# protocol of arXiv 2407.09216. Training uses boxes and does not load the segments.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSceneGraphAnnotations', with_seg=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(
        type='PackSceneGraphInputs',
        meta_keys=(
            *('img_id', 'img_path', 'seg_map_path'),
            *('ori_shape', 'img_shape', 'scale_factor'),
        ),
    ),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(match='mask')
test_evaluator = val_evaluator
