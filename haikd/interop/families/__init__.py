"""The config fields and tensor names of each family of networks.

A family is a module with

  MODEL: the registered model that its networks are read as;
  MODEL_TYPES: the values of `model_type` in `config.json` that it reads;
  read_config(fields) -> options of that model, from a `fields.Fields`;
  tensors(options, names) -> a `rules.Tensors`: where each parameter is found,
    given the names of the tensors in the file;
  write_config(options) -> the fields of `config.json`, including
    `architectures` and `model_type`;
  LENGTH: the field for the longest text if no option gives it; else None.
"""
