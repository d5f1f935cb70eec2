"""A job that skips what it cannot use ends bitwise alike after kills."""

import json
import pathlib
import sys
import textwrap

import pytest

pytest.importorskip('tokenizers')
FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))
import kills_test as kills  # noqa: E402

COMMON = """
    from haikd import config as config_lib

    def get_config():
      config = config_lib.base()
      config.steps, config.batch_size = 12, 8
      config.log_every, config.checkpoint_every = 1, 4
      config.evaluation.every, config.evaluation.batch_size = 6, 8
      config.evaluation.split = config.evaluation.final = 'train'
      config.optimizer.ema_decay = 0.9
      config.teacher.train.steps = 6
      config.report.write = False
      config.data.on_error = 'skip'
"""
IMAGES = COMMON + """
      config.plugins = ('my_spoilt',)
      config.data.name = 'spoilt'
      config.teacher.options = dict(hidden=(8,))
      config.student.model = 'convnet'
      config.student.options = dict(channels=(2,), dropout=0.2)
      return config
"""
TEXTS = COMMON + """
      for network in (config.teacher, config.student):
        network.model = 'llama'
        network.options = dict(width=8, depth=1, heads=1, hidden=8)
      config.data.name = 'text'
      config.data.options = dict(tokenizer={folder!r}, length=8, form='padded')
      config.data.source_dir = {folder!r}
      return config
"""
PLUGIN = """
    import haikd
    import numpy as np

    class Spoilt:
      num_classes = 3

      def __len__(self):
        return 40

      def __getitem__(self, index):
        if index == 11:
          raise ValueError('a broken file')
        image = np.random.default_rng(index).random((4, 4, 1), np.float32)
        if index == 7:
          image[0] = np.nan
        return dict(image=image, label=9 if index == 13 else index % 3)

    @haikd.register_dataset()
    def spoilt(split, data_dir=None):
      return Spoilt()
"""


class Campaign(kills.Campaign):
  """A job of images or of texts, some of which cannot be used."""

  def _write_data(self):
    import tokenizers
    words = dict(zip(['<pad>', '</s>', *'abcdef'], range(8)))
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        words, unk_token='<pad>'))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(['<pad>', '</s>'])
    made.save(str(self.folder / 'tokenizer.json'))
    (self.folder / 'tokenizer_config.json').write_text(
        '{"eos_token": "</s>", "pad_token": "<pad>"}')
    lines = [json.dumps(dict(text=' '.join('abcdef'[i % 5:][:1 + i % 4])))
             for i in range(40)]
    lines[3], lines[9], lines[20] = '{"text": 3}', '{"other": "a"}', '{"text"'
    (self.folder / 'train.jsonl').write_text('\n'.join(lines) + '\n')
    (self.folder / 'my_spoilt.py').write_text(textwrap.dedent(PLUGIN))


@pytest.mark.parametrize('config, said', [
    (IMAGES, "split 'train': 2 skipped so far of the examples"),
    pytest.param(TEXTS, "split 'train': 3 records cannot be used",
                 marks=pytest.mark.slow)], ids=['images', 'texts'])
def test_a_killed_job_that_skips_ends_bitwise_the_same(
    tmp_path, monkeypatch, config, said):
  monkeypatch.setattr(kills, 'CONFIG', config)
  campaign = Campaign(tmp_path, seed=0)
  with campaign.lives:
    expected = campaign.finish('whole')
    assert said in (tmp_path / 'log').read_text()
    for aim in ('teacher', 'saving', 'distillation'):
      assert campaign.kill('killed', aim, most=1)
    assert campaign.finish('killed') == expected
