"""Exports a trained student for other libraries: `--mode=export`."""

import fnmatch
import os
import pathlib
from typing import Any, Optional

import jax
import numpy as np

from haikd import config as config_lib
from haikd import interop
from haikd.core import base
from haikd.core import checks
from haikd.core import registry
from haikd.core import signatures
from haikd.core import tasks
from haikd.engine import mesh as mesh_lib
from haikd.interop import tokenizer_files
from haikd.network import network as network_lib
from haikd.processes import distributed
from haikd.run import card as card_lib
from haikd.run import chain
from haikd.run import portable
from haikd.run import resolve
from haikd.run import stablehlo
from haikd.run import trained as trained_lib
from haikd.run import trainees
from haikd.run import two_tokenizers
from haikd.run import workdir as workdir_lib
from haikd.storage import checkpoint
from haikd.storage import files
from haikd.storage import folders
from haikd.storage import paths

# The formats, and the folders below the workdir that they are written to.
FOLDERS = dict(hf='export', stablehlo='export-stablehlo', npz='export-npz')

_TRIAL_ROWS = 2  # Examples on which outputs are compared.


def export(config: config_lib.ConfigDict,
           workdir: paths.Path,
           output: Optional[paths.Path] = None,
           kind: str = 'hf') -> paths.Path:
  """Writes the student of a run as a folder that needs none of haikd.

  The folder holds the network (with the running mean of its parameters, if one
  was kept), the files of the tokenizer, and a model card with the run's config
  and results. It is loaded again and its outputs are compared before it
  appears. Learned alignments and taps are not exported.

  Args:
    config: the run's config.
    workdir: the workdir of the run, which has a checkpoint.
    output: the folder to write; by default that of the format below the
      workdir. An earlier export of the same format there is replaced.
    kind: 'hf', a folder that transformers loads; 'stablehlo', a program and its
      weights; or 'npz', an archive of the weights.

  Returns:
    The folder.

  Raises:
    ConfigError: the model has no such format, or the folder holds something
      else.
    DataError: there is no checkpoint, or the folder cannot be written.
  """
  workdir = paths.as_path(workdir)
  output = workdir / FOLDERS[kind] if output is None else paths.as_path(output)
  if kind == 'stablehlo':
    stablehlo.check_installed()
  config = resolve.from_pretrained(chain.links(config, workdir)[-1].config)
  if kind == 'hf' and not interop.has_family(config.student.model):
    raise checks.ConfigError(
        '--format=hf must be of a model that transformers has; got '
        f'{config.student.model!r}. Use --format=stablehlo or --format=npz.')
  student = trainees.build(config, mesh_lib.build_mesh(config.mesh))
  workdir_lib.claim(workdir, student.config, create=False)
  if not checkpoint.has_checkpoint(workdir):
    raise checks.DataError(
        f'--workdir must hold a trained student; got {workdir}. Train it '
        'first, or correct --workdir.')
  if kind == 'hf':
    _export_hf(student, workdir, output)
  else:
    student.check_vocabulary(
        checkpoint.metadata(workdir, field='--workdir'), 'student')
    # The other processes have nothing to gather: one reads the checkpoint.
    distributed.first(lambda: _export_portable(student, workdir, output, kind))
  return output


def _export_hf(student, workdir, output):
  trained = student.trained('--workdir', workdir, 'student')
  data, text = student.config.data, student.data.text_of('student')
  parameters = network_lib.count_parameters(trained.network.params)

  def card(folder):
    name = files.read_json(folder / 'config.json')['architectures'][0]
    usage = ('```python\nimport transformers\n\n'
             f"model = transformers.{name}.from_pretrained('.')\n```\n")
    return card_lib.build(
        student.config, workdir, parameters=parameters, library='transformers',
        usage=usage, class_names=student.data.class_names,
        ignored=_ignored(student),
        difference=_difference_hf(student, trained.network, folder))

  interop.export(
      output,
      model=student.config.student.model,
      options=_options(student),
      params=trained.network.params,
      tokenizer=tokenizer_of(student),
      card=card,
      classes=data.options.get('classes'),
      scale=_scale(student),
      length=data.options.get('length'),
      original=original_of(student.config.student),
      teacher=speaker_of(student),
      ends=text.ends if text else ())


def _export_portable(student, workdir, output, kind):
  """Writes a program or an archive; only one process does it."""
  is_program = kind == 'stablehlo'
  folders.check_free(output, kind)
  network = trained_lib.load(workdir, 'student')
  pixels = student.data.image_dtype
  trial = portable.make_trial(network, _view(student), pixels)
  tokenizer = tokenizer_files.collect(tokenizer_of(student))
  about_ids = ('The files of the tokenizer are beside it; '
               "`tokenizers.Tokenizer.from_file('tokenizer.json')` gives the "
               'ids.\n') if tokenizer else ''
  with folders.appearing(pathlib.Path(output), kind) as folder:
    written = (
        portable.write_program(folder, network, trial, pixels) if is_program
        else portable.write_archive(folder, network, trial))
    tokenizer_files.write(folder, tokenizer)
    files.replace(folder / portable.CARD, card_lib.build(
        student.config, workdir,
        parameters=network_lib.count_parameters(network.params),
        library='jax', usage=written.usage + about_ids,
        class_names=network.class_names, ignored=_ignored(student),
        difference=written.difference))


def _view(student):
  """Returns what the student gets of a few examples of the data."""
  split = student.config.evaluation.final
  batch = student.data.pick(split)[0]
  return jax.tree.map(lambda x: x[:_TRIAL_ROWS], batch.view('student'))


def _difference_hf(student, network, folder):
  """Returns the largest difference of outputs to those of a written folder.

  Of several processes only the first can read the folder: then it is None.
  """
  if jax.process_count() > 1:
    return None
  init, original = f'hf:{folder}', original_of(student.config.student)
  # Unknown fields are kept, tensors that are not used are not.
  fields = tuple(_names(files.read_json(folder / 'config.json')))
  ignore = [name for name in original.ignore if fnmatch.filter(fields, name)
            ] if original else []
  # How the blocks are compiled is no part of what is written.
  options = dict(interop.describe(init, ignore=ignore).options)
  if 'scan' in student.config.student.options:
    options['scan'] = student.config.student.options.scan
  again = interop.load('--output', init, student.expected('student'),
                       options=options, ignore=ignore)
  config = student.config.copy_and_resolve_references()
  with config.unlocked():
    config.student.options = options
  view = _view(student)
  expected, outputs = (
      _outputs(student, of, variables, view)
      for of, variables in ((student.config, network), (config, again)))
  return portable.largest_difference(
      student.config.student.precision, view.mask, outputs, expected)


def _names(fields, prefix=''):
  """Yields the names of fields and, after a dot, of those inside them."""
  for name, value in fields.items():
    yield f'{prefix}{name}'
    if isinstance(value, dict):
      yield from _names(value, f'{prefix}{name}.')


def _outputs(student, config, variables, view):
  """Returns the outputs of the student with these options and weights."""
  network = network_lib.build_network(
      config.student, title='student', num_classes=tasks.count_outputs(
          student.data.task, student.data.spec.labels,
          student.data.num_classes))
  return jax.jit(lambda variables, view: trained_lib.materialised(
      network.infer(variables, base.Batch(*view)).logits))(variables, view)


def _ignored(student):
  """Returns what was ignored when the networks were read, by role."""
  originals = {role: original_of(student.config[role])
               for role in ('teacher', 'student')}
  return {role: original.ignore for role, original in originals.items()
          if original is not None and original.ignore}


def original_of(network: Any) -> Optional[interop.Original]:
  """Returns the pretrained weights that a network began as.

  It may have begun as the student of another run, which in turn began as them.

  Args:
    network: the fields of `haikd.config.network()`.

  Returns:
    The weights; None if it began as none.
  """
  init, layers = network.init, network.init_layers
  ignore = network.init_options.ignore
  seen: set[str] = set()
  while init and not interop.is_pretrained(init) and init not in seen:
    seen.add(init)
    path = paths.as_path(init) / workdir_lib.CONFIG_FILE
    if not paths.exists(path):
      return None
    # A run from before a field has its default.
    student = {**config_lib.network().to_dict(),
               **files.read_json(path)['student']}
    init, layers = student['init'], student['init_layers']
    ignore = student['init_options']['ignore']
  if not init or init in seen:
    return None
  return interop.Original(init, layers, ignore)


def speaker_of(student: trainees.Trainee) -> Optional[interop.Original]:
  """Returns the teacher if it has the student's ids of special tokens."""
  texts = [student.data.text_of(role) for role in ('teacher', 'student')]
  tokenizers = {text and text.tokenizer for text in texts}
  return (original_of(student.config.teacher) if len(tokenizers) == 1 else
          None)


def tokenizer_of(
    student: trainees.Trainee) -> Optional[interop.TokenizerSource]:
  """Returns the tokenizer of a student's texts; None without texts."""
  text = student.data.text_of('student')
  if text is None:
    return None
  options = student.config.data.options
  original = options.get(two_tokenizers.OPTION) or options.get('tokenizer')
  if original is not None:
    # Not the tokenizer inside of a GGUF file, nor one in a bucket.
    original = os.path.expanduser(original)
    original = original if os.path.exists(original) else None
  return interop.TokenizerSource(text.tokenizer, original, text.kept_ids)


def _options(student):
  """Returns the student's options with its number of outputs."""
  network = student.config.student
  options = config_lib.plain(network.options)
  names = signatures.option_names(registry.models[network.model].function)
  if 'num_classes' in names:
    data = student.data
    options.setdefault('num_classes', tasks.count_outputs(
        data.task, data.spec.labels, data.num_classes))
  return options


def _scale(student):
  """Returns mean and standard deviation by channel of images, or None."""
  channels = student.config.student.options.get('channels')
  if channels is None:  # The student takes no images.
    return None
  by_channel = lambda value: tuple(
      float(x) for x in np.broadcast_to(np.asarray(value), (channels,)))
  data = student.config.data
  return by_channel(data.mean), by_channel(data.std)
