# The small CNN on scikit-learn's digits with adaptive gradient clipping (arXiv 2102.06171).
_base_ = 'small-cnn_value_digits.py'

optim_wrapper = dict(
    clip_grad=dict(
        _delete_=True,
        type='AGC',
        clip_factor=0.05,
        # The paper does not clip the final classifier, here the last layer of SmallCNN.
        exclude=[r'^network\.9\.'],
    )
)
