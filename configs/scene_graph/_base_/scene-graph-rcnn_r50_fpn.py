# A pretrained, frozen Faster R-CNN R50-FPN with a relation head. Sizes are those of Neural Motifs
# (arXiv 1711.06640) and of the code behind most VG150 tables (Tang et al., arXiv 2002.11949): 80
# objects, 1024 pairs of which at most a quarter are positive, 512 hidden and 200 embedding
# dimensions. RoI layers have 1024 channels, there 4096.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py']

model = dict(
    type='SceneGraphRCNN',
    protocol='predcls',  # given boxes and labels; 'sgcls': given boxes; 'sgdet': nothing given
    freeze_detector=True,
    backbone=dict(init_cfg=None),  # load_from has all detector weights
    relation_head=dict(
        type='RelationHead',
        context=dict(type='IdentityContext'),
        frequency_bias=dict(type='FrequencyBias'),
        fc_dim=1024,
        embed_dim=200,
        geometry_dim=128,
        fusion='product',  # of the features of the pair and of its union box
        dropout=0.2,
    ),
    train_cfg=dict(
        relation=dict(
            sampler=dict(type='PairSampler', num=1024, pos_fraction=0.25), iou_thr=0.5, add_gt=True
        )
    ),
    test_cfg=dict(
        rcnn=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5), max_per_img=80),
        relation=dict(max_objects=80, max_pairs=2048, nms_iou_thr=0.5),
    ),
)
