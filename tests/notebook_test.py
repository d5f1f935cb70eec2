"""The notebook of the documentation, executed as Jupyter does."""

import pathlib

import nbclient
import nbformat

PATH = pathlib.Path(__file__).parents[1] / 'docs/examples/two_moons.ipynb'


def test_notebook_runs_and_names_what_it_is_asked_for(tmp_path):
  notebook = nbformat.read(PATH, as_version=4)
  nbformat.validate(notebook)
  assert not any(cell.get('outputs') for cell in notebook.cells)
  client = nbclient.NotebookClient(
      notebook, timeout=300, kernel_name='python3',
      resources=dict(metadata=dict(path=str(tmp_path))))
  client.execute()
  train, named, shapes = [cell.outputs for cell in notebook.cells
                          if cell.cell_type == 'code'][-3:]
  printed = ''.join(x.text for x in train if x.output_type == 'stream')
  # Lines, since a notebook is no terminal: no bar that is drawn over itself.
  assert 'student 100/100  train' in printed and '\x1b' not in printed
  assert 'student distilled' in printed
  assert named[0].data['text/plain'] == "['upper', 'lower']"
  assert shapes[0].data['text/plain'] == '[(2, 8)]'
