# The small CNN on scikit-learn's digits with norm clipping.
_base_ = 'small-cnn_value_digits.py'

optim_wrapper = dict(clip_grad=dict(_delete_=True, type='NormClip', max_norm=1.0))
