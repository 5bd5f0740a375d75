"""The built-in stores: each a `sequential.storage.Journal`, each in a module of its own."""
