_base_ = ['./identity_predcls_r50_fpn_psg.py']
model = dict(protocol='sgdet')
# As published: a batch of 8 images in SGDet.
train_dataloader = dict(batch_size=8)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
