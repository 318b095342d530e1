_base_ = ['./imp_predcls_r50_fpn_vg150.py']
model = dict(protocol='sgcls')
# According to Tang et al., IMP does not converge in SGCls with the learning rate of the other
# contexts. They use 0.001 per image.
optim_wrapper = dict(optimizer=dict(lr=0.012))
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
