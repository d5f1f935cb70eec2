"""What a family's config fields mean, and what its tensors are called.

A family is a module with

  MODEL: the registered model it is read as;
  MODEL_TYPES: the values of `model_type` in `config.json` that it reads;
  read_config(fields) -> options of that model, from a `fields.Fields`;
  tensors(options, names) -> a `rules.Tensors`: where each parameter is found,
    given the names of the tensors there are;
  write_config(options) -> the fields of `config.json`, `architectures` and
    `model_type` among them;
  LENGTH: the field for the longest text, where no option says it; or None.
"""
