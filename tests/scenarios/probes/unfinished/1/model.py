import no_such_module

no_such_module.begin()
