"""Each mistake in the command or the config gets one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from gclip_mm.cli import test as test_command
from gclip_mm.cli import train as train_command
from gclip_mm.cli.launch import check_clipping, explain_missing_data
from gclip_mm.engine.configs import LaunchError, find_config, load_config


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('configs/retina/retina_r50.py', 'configs/yolo/yolo_s.py', 'mine/net_r50.py'):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text('a = 1\n')
    return tmp_path


def test_config_is_found_by_path(configs):
    assert find_config('configs/yolo/yolo_s.py') == 'configs/yolo/yolo_s.py'
    assert find_config(str(configs / 'mine/net_r50.py')) == str(configs / 'mine/net_r50.py')


@pytest.mark.parametrize(
    ('wrong', 'right'),
    [
        ('configs/retina/retina_r5O.py', 'configs/retina/retina_r50.py'),
        ('retina_r50.py', 'configs/retina/retina_r50.py'),
        ('configs/yolo/retina_r50', 'configs/retina/retina_r50.py'),
        ('mine/net_r5.py', 'mine/net_r50.py'),
    ],
)
def test_missing_config_suggests_similar_names(configs, wrong, right):
    with pytest.raises(LaunchError, match='is not there; did you mean') as caught:
        find_config(wrong)
    assert right in str(caught.value)


def test_missing_config_without_similar_names_suggests_nothing(configs):
    with pytest.raises(LaunchError) as caught:
        find_config('configs/zzz.py')
    assert str(caught.value) == "config 'configs/zzz.py' is not there"


@pytest.mark.parametrize('folder', ['', 'configs/'])
def test_stock_config_is_found_by_package(folder):
    stock = Path(mmdet.__file__).parent / '.mim/configs/retinanet/retinanet_r50_fpn_1x_coco.py'
    assert Path(find_config(f'mmdet::{folder}retinanet/retinanet_r50_fpn_1x_coco.py')) == stock


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coc.py', 'did you mean mmdet::retinanet/'),
        ('mmnothing::a.py', "no package 'mmnothing' is installed"),
        ('../x::a.py', "no package '../x' is installed"),
        ('json::a.py', "package 'json' ships no configs"),
    ],
)
def test_missing_stock_config_is_an_error(name, message):
    with pytest.raises(LaunchError, match=message):
        find_config(name)


def test_stock_config_serves_as_base(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\nx = 1\n")
    cfg = load_config(str(path), {'model.neck.num_outs': 4}, None, 'none')
    assert (cfg.model.type, cfg.model.neck.num_outs, cfg.x) == ('RetinaNet', 4, 1)
    assert cfg.work_dir == 'work_dirs/mine'


def test_work_dir_flag_precedes_config_precedes_name(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("work_dir = 'from_config'\n")
    assert load_config(str(path), None, None, 'none').work_dir == 'from_config'
    assert load_config(str(path), None, 'from_flag', 'none').work_dir == 'from_flag'


def test_train_and_test_print_one_line_for_an_error(tmp_path):
    with pytest.raises(SystemExit) as caught:
        train_command.main([str(tmp_path / 'no.py')])
    assert str(caught.value).startswith('gclip train: error: config ')
    assert '\n' not in str(caught.value)
    config = tmp_path / 'c.py'
    config.write_text('model = dict()\n')
    with pytest.raises(SystemExit, match=r"^gclip test: error: checkpoint 'no.pth' is not there$"):
        test_command.main([str(config), 'no.pth'])
    with pytest.raises(SystemExit, match=r"^gclip test: error: --out 'x.json' has to end in .pkl"):
        test_command.main([str(config), str(config), '--out', 'x.json'])


@pytest.mark.parametrize(
    'clip_grad',
    ['type=AGCC', 'max_nrom=1', 'max_norm=-1', 'max_norm=nan', 'exclude="[no_such_layer]"'],
)
def test_invalid_clip_grad_is_one_line(train, clip_grad):
    with pytest.raises(SystemExit, match=r'^gclip train: error: .*clip_grad') as caught:
        train('wrong', '--cfg-options', f'optim_wrapper.clip_grad.{clip_grad}')
    assert '\n' not in str(caught.value)


# -- Clipping that nothing would read --------------------------------------------------------------


@pytest.mark.parametrize(
    'config',
    [
        dict(optimizer_config=dict(grad_clip=dict(max_norm=35))),
        dict(clip_grad=dict(max_norm=35)),
        dict(grad_clip=dict(max_norm=35)),
    ],
)
def test_top_level_clipping_key_is_rejected(config):
    with pytest.raises(LaunchError, match=rf'{next(iter(config))!r}.*optim_wrapper\.clip_grad'):
        check_clipping(Config(config))


@pytest.mark.parametrize('kind', ['OptimWrapper', 'AmpOptimWrapper', None])
def test_rule_on_a_stock_wrapper_is_rejected(kind):
    config = dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(type='AGC'))
    if kind is not None:
        config['type'] = kind
    with pytest.raises(LaunchError, match=f"'AGC'; use GClip{kind or 'OptimWrapper'}"):
        check_clipping(Config(dict(optim_wrapper=config)))


@pytest.mark.parametrize(
    'clip_grad', [None, dict(max_norm=35, norm_type=2), dict(type='value', clip_value=0.1)]
)
def test_stock_clipping_is_accepted(clip_grad):
    config = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), clip_grad=clip_grad)
    check_clipping(Config(dict(optim_wrapper=config)))
    check_clipping(Config(dict(model=dict(type='X'))))


# -- Data that is not there ------------------------------------------------------------------------


def explain(**dataset) -> str:
    cfg = Config(dict(val_dataloader=dict(dataset=dataset)))
    with pytest.raises(LaunchError) as caught, explain_missing_data(cfg):
        raise FileNotFoundError('deep inside')
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    return str(caught.value)


def test_missing_data_root_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explain(data_root='data/BCCD/').startswith(
        "val_dataloader.dataset.data_root 'data/BCCD/' is not there"
    )
    assert "ann_file '" in explain(data_root=str(tmp_path), ann_file='x.json')


def test_missing_data_root_inside_wrappers_is_named():
    nested = dict(type='RepeatDataset', dataset=dict(datasets=[dict(), dict(data_root='gone')]))
    assert "dataset.dataset.datasets[1].data_root 'gone'" in explain(**nested)


@pytest.mark.parametrize(
    'dataset', [{}, dict(data_root='s3://bucket/x'), dict(data_root='x', backend_args=dict(a=1))]
)
def test_other_missing_files_keep_their_error(dataset):
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match='weights'), explain_missing_data(cfg):
        raise FileNotFoundError('weights')


def test_train_names_the_missing_data(tmp_path, monkeypatch):
    """The whole way, through a stock data set that fails while the runner builds it."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / 'c.py'
    config.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
        'model = dict(backbone=dict(init_cfg=None))\n'
        "log_level = 'ERROR'\n"
    )
    with pytest.raises(SystemExit, match=r"train_dataloader\.dataset\.data_root 'data/coco/'"):
        train_command.main([str(config), '--work-dir', str(tmp_path)])
