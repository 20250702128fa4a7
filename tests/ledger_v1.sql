-- A ledger of format 1, as it must stay readable for ever: do not edit.
-- One and a half rounds of two clients: client 1 of round 2 failed, and round 2 with it.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) STRICT;
CREATE TABLE rounds (
    round INTEGER NOT NULL,
    test_accuracy REAL,
    test_loss REAL,
    clients_trained INTEGER NOT NULL,
    clients_failed INTEGER NOT NULL,
    uplink_bytes INTEGER NOT NULL,
    downlink_bytes INTEGER NOT NULL,
    cpu_seconds REAL,
    wall_seconds REAL,
    PRIMARY KEY (round)
) STRICT;
CREATE TABLE clients (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    examples INTEGER,
    steps INTEGER,
    loss_first_step REAL,
    loss_last_step REAL,
    cpu_seconds REAL,
    wall_seconds REAL,
    dense_bytes INTEGER,
    update_norm REAL,
    status TEXT NOT NULL,
    error TEXT,
    PRIMARY KEY (round, client)
) STRICT;
CREATE TABLE layers (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    layer TEXT NOT NULL,
    parameters INTEGER NOT NULL,
    update_norm REAL,
    PRIMARY KEY (round, client, layer)
) STRICT;
CREATE TABLE client_states (client INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT;
CREATE TABLE checkpoints (
    round INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;
INSERT INTO meta VALUES ('format_version', '1'), ('fedsim', '0.1.0');
INSERT INTO rounds VALUES (1, 0.8125, 0.25, 2, 0, 32, 32, 1.5, 1.75);
INSERT INTO clients VALUES
    (1, 0, 60, 6, 2.25, 0.5, 0.75, 0.875, 16, 0.0625, 'ok', NULL),
    (1, 1, 40, 4, 2.5, 9e999, 0.75, 0.875, 16, 0.03125, 'ok', NULL),
    (2, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'failed', 'the worker died');
INSERT INTO layers VALUES (1, 0, 'out.weight', 4, 0.0625), (1, 1, 'out.weight', 4, 0.03125);
INSERT INTO checkpoints VALUES (
    1,
    'checkpoint-000001.safetensors',
    '7b7e18286664f7c5585bdc32c341ee755261230af7edd46b70994d455ac26366'
);
-- safetensors: {"control": [0.25, -1.0]} in float64
INSERT INTO client_states VALUES (1, X'68000000000000007b225f5f6d657461646174615f5f223a7b226f72646572223a225b5c22636f6e74726f6c5c225d227d2c22636f6e74726f6c223a7b226474797065223a22463634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d7d2020000000000000d03f000000000000f0bf');
