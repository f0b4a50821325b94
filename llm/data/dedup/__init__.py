"""What stands there twice: exact and near copies, passages of evaluation sets, records to remove."""
