"""One module per dvc stage; `plumbing` holds what every stage shares and no result depends on."""
