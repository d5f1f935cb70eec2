"""The flags of the command line."""

from absl import flags

MODES = ('train', 'eval', 'plan', 'export', 'teach', 'sweep')
FORMATS = ('hf', 'stablehlo', 'npz')


def define() -> flags.FlagValues:
  """Returns the flags, which are not parsed yet."""
  values = flags.FlagValues()
  flags.DEFINE_string(
      'config', None,
      'Config file, or haikd:<name> for one that comes with haikd, with an '
      'optional :variant; --config.field=value overrides a field.',
      flag_values=values)
  flags.DEFINE_string(
      'workdir', None,
      'Folder of the run, local or gs://bucket/…; runs/<config> by default.',
      flag_values=values)
  flags.DEFINE_enum(
      'mode', 'train', MODES, 'What to do.', flag_values=values)
  flags.DEFINE_list(
      'topology', None,
      'Devices to plan for, such as v5e:16x16,v5p:8x8x8,2*v5e:16x16,cpu:8,gpu;'
      ' the first three need `pip install haikd[plan]`, and no TPU.',
      flag_values=values)
  flags.DEFINE_enum(
      'format', None, FORMATS,
      'Format to export: hf (the default), a folder that transformers loads; '
      'stablehlo, a program and its weights, which JAX runs without haikd; or '
      'npz, an archive of the weights.',
      flag_values=values)
  flags.DEFINE_string(
      'output', None,
      'Folder to export to; by default <workdir>/export for hf, and '
      '<workdir>/export-<format> for the others.',
      flag_values=values)
  flags.DEFINE_string(
      'server', None, 'Address of a teacher on a server, for --mode=teach.',
      flag_values=values)
  flags.DEFINE_integer(
      'seeds', 1,
      'Train this many times, with the seeds config.seed, config.seed + 1 and '
      'so on, and print means with 95 % intervals.',
      lower_bound=1,
      flag_values=values)
  flags.DEFINE_bool(
      'allow_config_change', False, 'Go on with a run whose config was another '
      'one; config_changes.jsonl in the workdir has what has changed.',
      flag_values=values)
  flags.DEFINE_bool(
      'profile', False, 'Trace steps 10 to 15 of the student, or those of '
      'config.profile.steps, into the folder profile of the workdir.',
      flag_values=values)
  flags.DEFINE_string(
      'coordinator', None,
      'host:port of process 0, for a run of several processes.',
      flag_values=values)
  flags.DEFINE_integer(
      'num_processes',
      None,
      'Number of processes; 1 to look for no others.',
      lower_bound=1,
      flag_values=values)
  flags.DEFINE_integer(
      'process_id',
      None,
      'Index of this process, from 0.',
      lower_bound=0,
      flag_values=values)
  flags.DEFINE_bool(
      'debug', False, 'Show the traceback of an error.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  values.set_gnu_getopt(True)
  return values
