"""What every room of the package stands on: arrays, scalars, files, names, states, modules. Nothing here is public."""
