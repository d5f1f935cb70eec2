"""A base model that learns to answer is exported as one that stops."""

import json
import pathlib
import shutil
import textwrap

import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers

GOLDEN = pathlib.Path(__file__).parents[1] / 'interop' / 'golden' / 'smollm2'
SPECIAL = ['<pad>', '<unk>', '</s>', '<|im_end|>']
TEMPLATE = ('{% for m in messages %}{{ m.content + " " + eos_token + " " }}'
            '{% endfor %}')
CONFIG = """
    import pathlib
    from haikd import config as config_lib

    HERE = pathlib.Path(__file__).parent

    def get_config():
      config = config_lib.base()
      config.steps = 1
      config.batch_size = config.evaluation.batch_size = 8
      config.evaluation.split = config.evaluation.final = 'train'
      config.data.name, config.data.source_dir = 'chat', str(HERE)
      config.data.data_dir = str(HERE / 'prepared')
      config.data.options = dict(
          length=8, chat_template=str(HERE / 'template.jinja'),
          eos='<|im_end|>')
      config.teacher.init = f'hf:{HERE}/teacher'
      config.student.init = f'hf:{HERE}/student'
      config.teacher.init_layers = config.student.init_layers = (0,)
      return config
"""


def write_model(folder, *, eos, ids):
  """Writes a network whose tokenizer ends texts with a token."""
  shutil.copytree(GOLDEN, folder)
  config = json.loads((folder / 'config.json').read_text())
  words = [*SPECIAL, *(f'w{i}' for i in range(config['vocab_size'] - 4))]
  made = tokenizers.Tokenizer(models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens(SPECIAL)
  made.save(str(folder / 'tokenizer.json'))
  for name, content in {
      'config.json': dict(config, eos_token_id=ids),
      'generation_config.json': dict(eos_token_id=ids, top_k=5),
      'tokenizer_config.json': dict(
          eos_token=eos, pad_token='<pad>', chat_template='old')}.items():
    (folder / name).write_text(json.dumps(content))


def test_a_base_model_becomes_one_that_answers_and_stops(run, tmp_path):
  write_model(tmp_path / 'teacher', eos='<|im_end|>', ids=[3, 2])
  write_model(tmp_path / 'student', eos='</s>', ids=2)
  (tmp_path / 'template.jinja').write_text(TEMPLATE)
  (tmp_path / 'job.py').write_text(textwrap.dedent(CONFIG))
  (tmp_path / 'train.jsonl').write_text(''.join(
      json.dumps(dict(messages=[
          dict(role='user', content=f'w{i} w1'),
          dict(role='assistant', content=f'w2 w{i}')])) + '\n'
      for i in range(8)))
  assert run(config='job.py')[0] == 0
  code, _, err = run('--mode=export', config='job.py')
  assert code == 0
  # The answers end with <|im_end|>, whose id is 3.
  for name in ('config.json', 'generation_config.json'):
    assert (f'haikd: {name}: texts of the data end with id 3, which is added '
            'to eos_token_id, 2. config.data.options.eos chooses the token.'
            ) in err
    content = json.loads((tmp_path / 'run/export' / name).read_text())
    assert content['eos_token_id'] == [2, 3]
  # Whoever renders it need not know what the options were.
  assert (tmp_path / 'run/export/chat_template.jinja').read_text() == (
      "{% set eos_token = '<|im_end|>' %}" + TEMPLATE)
  assert json.loads((tmp_path / 'run/export/tokenizer_config.json').read_text(
      )) == dict(eos_token='<|im_end|>', pad_token='<pad>')
