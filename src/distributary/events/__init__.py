"""What is published, as finished messages: JSON of BSON values, envelopes, rows for BigQuery. Pure."""
