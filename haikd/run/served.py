"""Records a teacher that runs on a server: `--mode=teach --server=…`.

The server gives the largest log-probabilities of what follows in a prompt. So
much serves records of kind top_k, and no others.
"""

from collections.abc import Mapping
import concurrent.futures
from typing import Any

import jax
import numpy as np

from haikd import config as config_lib
from haikd.core import checks
from haikd.core import notes
from haikd.data import pipeline
from haikd.data.text import text_tokenizers
from haikd.engine import mesh as mesh_lib
from haikd.engine import program as program_lib
from haikd.engine import record as record_lib
from haikd.objective import recorded as recorded_lib
from haikd.processes import distributed
from haikd.processes import leaving
from haikd.run import recorded as run_recorded
from haikd.run import recording
from haikd.run import resolve
from haikd.run import served_probe
from haikd.run import teach as teach_lib
from haikd.run import workdir as workdir_lib
from haikd.served import client as client_lib
from haikd.served import completions
from haikd.served import prompts as prompts_lib
from haikd.storage import paths
from haikd.teacher_records import folder as folder_lib
from haikd.teacher_records import top_k

_FLAG = client_lib.FLAG
_OTHER_TEXTS = 0.05  # The part of tokens whose texts may differ.
# What a server does not give, by kind.
_REASONS = {
    'sampled': 'which draws from all classes, where a server gives the largest '
               'probabilities: what were drawn of these alone would be biased',
    'hidden': 'which keeps states of the network, where a server gives '
              'probabilities',
}


def teach(config: config_lib.ConfigDict, workdir: paths.Path,
          url: str) -> dict[str, Any]:
  """Records the model of a server on the training split of a config.

  Args:
    config: a validated config with `config.teacher.records`, whose teacher has
      no weights.
    workdir: of the run.
    url: of the server.

  Returns:
    The manifest of the records.

  Raises:
    ConfigError: the config cannot work, with records or with a server.
    DataError: the data or the server cannot be used, or the folder holds other
      records.
    StoppedError: SIGTERM has come; complete shards are kept.
  """
  given, workdir = teach_lib.given_of(config), paths.as_path(workdir)
  options = config_lib.record_options(given)
  _check_fields(config, options)
  run_recorded.check_fields(config)
  fields = config.teacher.server
  client = client_lib.Client(url, fields.timeout)
  owner, data = _prepare(config, options)
  model = completions.find_model(client, fields.model)
  length = data.spec.mask.shape[1]
  if model.max_length is not None and length >= model.max_length:
    raise checks.ConfigError(
        'config.data.options.length must be below the max_model_len of '
        f'{model.name}, {model.max_length}, since a server continues a prompt '
        f'by a token; got {length}. Start the server with a larger one.')
  assert data.num_classes is not None, '_prepare has checked it'
  form = record_lib.Predicted(data.num_classes, 2, None)
  split = config.data.train
  recipe = teach_lib.recipe_of(data, split, options, model.identity, form)
  with workdir_lib.lock(workdir):
    workdir_lib.claim(workdir, owner)
    with Predictor(client, model, recipe.codec(), data,
                   min(2 * fields.requests, recipe.shard_rows),
                   fields.requests) as predictor:
      folder = folder_lib.place(given['path'])
      work = recording.Work(folder, recipe, predictor, data, split)

      def begin():
        folder_lib.begin(folder, recipe)
        served_probe.check(folder, client, model, data, split, options['k'])

      distributed.first(begin)
      return teach_lib.record(work, recipe, {
          run_recorded.SERVED: model._asdict()}, lambda: None)


def _check_fields(config, options):
  """Refuses what a server cannot give."""
  kind = options['kind']
  if kind != 'top_k':
    raise checks.ConfigError(
        f"config.teacher.records.kind must be 'top_k' with {_FLAG}; got "
        f"{kind!r}, {_REASONS[kind]}. Set it to 'top_k', or record the weights "
        'themselves.')
  if options['temperature'] != 1:
    raise checks.ConfigError(
        f'config.teacher.records.temperature must be 1 with {_FLAG}, which '
        f'gives too little to compute another; got {options["temperature"]}. '
        'Set it to 1.')
  run_recorded.check_served(config, f'with {_FLAG}')


def _prepare(config, options) -> tuple[config_lib.ConfigDict, pipeline.Data]:
  """Returns the resolved config and its data; refuses what can't be recorded.

  What training on the records would refuse is refused here, before anything is
  asked.
  """
  config = resolve.from_pretrained(config)
  mesh = mesh_lib.build_mesh(config.mesh)
  share = mesh_lib.batch_share(mesh)
  data = pipeline.build_data(
      config, shards=mesh_lib.batch_shards(mesh), process_index=share.index,
      process_count=share.count)
  run_recorded.check_varies(data)
  prompts_lib.check_spec(data.spec)
  text = data.text_of('teacher')
  if text is not None and text.kept_ids is not None:
    raise checks.ConfigError(
        f'config.data.options.prune must be False with {_FLAG}, since a server '
        'predicts all tokens of its tokenizer, and not how likely those that '
        'are kept are together; got True. Set it to False.')
  if data.num_classes is None:
    raise checks.ConfigError(
        f'config.data must say how many tokens there are with {_FLAG}; got '
        'num_classes=None.')
  config = resolve.with_vocabulary(config, text, data.text_of('student'))
  known = recorded_lib.Recorded(options, data.num_classes)
  program_lib.build_program(
      resolve.with_task(config, data.task), spec=known.with_targets(data.spec),
      num_classes=data.num_classes, mesh=mesh, has_teacher=True,
      recorded=known)
  data.check()
  return config, data


class Predictor:
  """A model on a server, as a `recording.Predictor`; use it in a `with`.

  Attributes:
    share: this process's.
    size: how many rows a part has.

  Args:
    client: asks the server.
    model: of the server.
    codec: of the records.
    data: of the run.
    size: how many rows a part has.
    requests: how many are sent at once.
  """

  def __init__(self, client: client_lib.Client, model: completions.Model,
               codec: Any, data: pipeline.Data, size: int, requests: int):
    assert isinstance(codec, top_k.Codec), 'other kinds are refused'
    self.share = mesh_lib.Share(jax.process_index(), jax.process_count())
    self.size = size
    self._client, self._model, self._codec = client, model, codec
    self._text = data.text_of('teacher')
    self._pool = concurrent.futures.ThreadPoolExecutor(
        requests, thread_name_prefix=leaving.EXPENDABLE)

  def __enter__(self) -> 'Predictor':
    return self

  def __exit__(self, *unused: Any) -> None:
    self._client.stop()
    # One that is being connected cannot be ended, and nobody needs it.
    self._pool.shutdown(wait=False, cancel_futures=True)

  def start(self, part: recording.Part) -> Any:
    """Asks for the documents of a part."""
    with_texts = self._text is not None
    asked = [(prompt, self._pool.submit(
        completions.predict, self._client, self._model, prompt.tokens,
        self._codec.k, with_texts))
             for prompt in prompts_lib.cut(part.batch, part.keep)]
    return part.keep.shape, asked

  def finish(self, started: Any) -> Mapping[str, np.ndarray]:
    """Returns what is kept of the answers."""
    shape, asked = started
    ids = np.zeros((*shape, self._codec.k), np.int32)
    log_probs = np.zeros(ids.shape, np.float32)
    texts: dict[int, str] = {}
    for prompt, future in asked:
      predicted = future.result()
      place = prompt.row, slice(prompt.start,
                                prompt.start + len(prompt.tokens) - 1)
      ids[place], log_probs[place] = predicted.ids, predicted.log_probs
      texts.update(predicted.texts)
    if asked:
      self._check_tokens(ids, texts)
    return self._codec.take(ids, log_probs)

  def _check_tokens(self, ids, texts):
    """Refuses a server whose tokens are not those of the data."""
    if ids.max() >= self._codec.classes:
      raise checks.DataError(
          f'{_FLAG} must predict tokens of the data; got {self._client.url}, '
          f'which gives the id {ids.max()}, where the data has '
          f'{self._codec.classes} tokens. Give the data the tokenizer of the '
          'model.')
    if self._text is None:
      return
    text, self._text = self._text, None  # Once is enough.
    if not texts:
      notes.say(f'{self._client.url} gives no texts of tokens: that its '
                f'tokenizer is {text.tokenizer} could not be checked.')
      return
    own = text_tokenizers.load(text.tokenizer)
    pairs = [(x, own.decode([x]), theirs) for x, theirs in texts.items()]
    others = [pair for pair in pairs if _differ(*pair[1:])]
    if len(others) > _OTHER_TEXTS * len(pairs):
      number, ours, theirs = others[0]
      raise checks.DataError(
          f'{_FLAG} must serve a model with the tokenizer of the data; got '
          f'{self._client.url}, where the token {number} is {theirs!r}, and '
          f'{text.tokenizer}, where it is {ours!r}. Give the data the '
          'tokenizer of the model.')


def _differ(ours: str, theirs: str) -> bool:
  """Returns whether texts of a token differ, but for what is not decoded."""
  undecoded = '\ufffd'  # A part of a character.
  return undecoded not in ours + theirs and ours.strip() != theirs.strip()
