"""Frameworks that a module needs and an installation may lack."""


def explain_missing(name: str, error: ModuleNotFoundError) -> None:
    """Say how to get the framework of ``rnnfast.<name>``, if that is the module which was not found."""
    if error.name == name:
        msg = f'rnnfast.{name} needs {name}, which is not installed: pip install "rnnfast[{name}]"'
        raise ModuleNotFoundError(msg, name=name) from error
