# Mask2Former small enough to train from scratch on a CPU in minutes: a ResNet-18 with a quarter of
# its channels, one encoder and three decoder layers, few queries, instances only. Losses and
# matching are those of mmdet's mask2former_r50. Set num_things_classes of both heads, and
# class_weight, in the inheriting config.
_base_ = './r18_tiny.py'

# ---- often changed: the classes ------------------------------------------------------------
num_classes = 80

# ---- rarely changed ------------------------------------------------------------------------
model = dict(
    type='Mask2Former',
    data_preprocessor=dict(pad_mask=True, mask_pad_value=0),
    panoptic_head=dict(
        type='Mask2FormerHead',
        in_channels=[16, 32, 64, 128],
        strides=[4, 8, 16, 32],
        feat_channels=64,
        out_channels=64,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=20,  # at most so many instances in an image
        num_transformer_feat_level=3,  # the decoder reads strides 32, 16 and 8 in turn
        pixel_decoder=dict(
            type='MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=16),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=64,
                        num_heads=4,
                        num_levels=3,
                        num_points=4,
                        dropout=0.0,
                        batch_first=True,
                    ),
                    ffn_cfg=dict(embed_dims=64, feedforward_channels=128, ffn_drop=0.0),
                ),
            ),
            positional_encoding=dict(num_feats=32, normalize=True),
        ),
        enforce_decoder_input_project=False,  # the widths are equal already
        positional_encoding=dict(num_feats=32, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0, batch_first=True),
                cross_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0, batch_first=True),
                ffn_cfg=dict(embed_dims=64, feedforward_channels=128, ffn_drop=0.0),
            ),
            init_cfg=None,
        ),
        loss_cls=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=2.0,
            reduction='mean',
            class_weight=[1.0] * num_classes + [0.1],  # the last: most queries match nothing
        ),
        loss_mask=dict(
            type='CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0
        ),
        loss_dice=dict(
            type='DiceLoss',
            use_sigmoid=True,
            activate=True,
            reduction='mean',
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
    ),
    panoptic_fusion_head=dict(
        type='MaskFormerFusionHead',
        num_things_classes=num_classes,
        num_stuff_classes=0,
        loss_panoptic=None,
        init_cfg=None,
    ),
    train_cfg=dict(
        num_points=1024,  # of about 5000 pixels at a quarter of the resolution
        # Three times as many candidates; three quarters of the points are the least certain ones.
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='ClassificationCost', weight=2.0),
                dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0),
            ],
        ),
        sampler=dict(type='MaskPseudoSampler'),
    ),
    test_cfg=dict(
        panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=20, iou_thr=0.8
    ),
)
