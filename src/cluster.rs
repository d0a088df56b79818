//! Private PostgreSQL clusters in temporary directories, for the demo, the tests and the benches.
