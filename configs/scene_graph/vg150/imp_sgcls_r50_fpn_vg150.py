_base_ = ['./imp_predcls_r50_fpn_vg150.py']
model = dict(protocol='sgcls')
# Tang et al. note that it does not converge in SGCls with the learning rate of the others.
# Theirs is 0.001 an image.
optim_wrapper = dict(optimizer=dict(lr=0.012))
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
