-- A project as version 1 of the schema wrote it: frozen here, so that its migration stays tested.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    purpose TEXT NOT NULL,
    round TEXT NOT NULL,
    body TEXT NOT NULL,
    turn INTEGER NOT NULL UNIQUE,
    first INTEGER NOT NULL DEFAULT 0,
    second INTEGER NOT NULL DEFAULT 0,
    neither INTEGER NOT NULL DEFAULT 0,
    adjudications INTEGER NOT NULL DEFAULT 0,
    counted INTEGER AS (first + second + neither) VIRTUAL,
    dispute INTEGER AS (
        CASE WHEN adjudications > 0 OR first + second + neither = 0 THEN 0
             WHEN max(first, second, neither) * 2 <= first + second + neither THEN 2
             WHEN first > 0 AND second > 0 THEN 1
             ELSE 0 END
    ) VIRTUAL
);
CREATE INDEX items_queue ON items (purpose, counted, turn);
CREATE INDEX items_round ON items (round);
CREATE INDEX items_dispute ON items (counted, turn) WHERE purpose = 'label' AND dispute > 0;
CREATE TABLE raters (
    number INTEGER PRIMARY KEY,
    alias TEXT NOT NULL UNIQUE,
    is_adjudicator INTEGER NOT NULL,
    is_imported INTEGER NOT NULL,
    is_suspended INTEGER NOT NULL DEFAULT 0,
    suspension_reason TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    votes INTEGER NOT NULL DEFAULT 0,
    most_votes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    item INTEGER NOT NULL REFERENCES items,
    rater INTEGER NOT NULL REFERENCES raters,
    choice TEXT NOT NULL,
    is_swapped INTEGER NOT NULL,
    seconds REAL,
    guideline INTEGER,
    time REAL NOT NULL,
    is_repeat INTEGER NOT NULL,
    is_adjudication INTEGER NOT NULL,
    note TEXT NOT NULL,
    feeds TEXT NOT NULL,
    UNIQUE (rater, item, is_repeat, is_adjudication)
);
CREATE INDEX votes_item ON votes (item, choice);
CREATE INDEX votes_rater ON votes (rater, number);
CREATE TABLE leases (
    rater INTEGER PRIMARY KEY REFERENCES raters,
    item INTEGER NOT NULL REFERENCES items,
    is_swapped INTEGER NOT NULL,
    is_repeat INTEGER NOT NULL,
    is_adjudication INTEGER NOT NULL,
    expires REAL NOT NULL
);
CREATE INDEX leases_item ON leases (item);
CREATE TABLE cursors (
    rater INTEGER NOT NULL REFERENCES raters,
    level INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    PRIMARY KEY (rater, level)
) WITHOUT ROWID;
CREATE TABLE guidelines (version INTEGER PRIMARY KEY, markdown TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE acknowledgements (
    rater INTEGER NOT NULL REFERENCES raters,
    version INTEGER NOT NULL REFERENCES guidelines,
    time REAL NOT NULL,
    PRIMARY KEY (rater, version)
) WITHOUT ROWID;
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    action TEXT NOT NULL,
    alias TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_alias ON audit (alias);
CREATE TRIGGER vote_added AFTER INSERT ON votes BEGIN
    UPDATE items SET
        first = first + (NEW.feeds = 'first'),
        second = second + (NEW.feeds = 'second'),
        neither = neither + (NEW.feeds = 'neither'),
        adjudications = adjudications + (NEW.feeds = 'adjudication'),
        turn = (SELECT max(turn) + 1 FROM items)
    WHERE number = NEW.item;
    UPDATE raters SET votes = votes + 1, most_votes = max(most_votes, votes + 1) WHERE number = NEW.rater;
END;
CREATE TRIGGER vote_removed AFTER DELETE ON votes BEGIN
    UPDATE items SET
        first = first - (OLD.feeds = 'first'),
        second = second - (OLD.feeds = 'second'),
        neither = neither - (OLD.feeds = 'neither'),
        adjudications = adjudications - (OLD.feeds = 'adjudication'),
        turn = (SELECT max(turn) + 1 FROM items)
    WHERE number = OLD.item;
    UPDATE raters SET votes = votes - 1 WHERE number = OLD.rater;
END;
CREATE TRIGGER vote_recounted AFTER UPDATE OF feeds ON votes BEGIN
    UPDATE items SET
        first = first + (NEW.feeds = 'first') - (OLD.feeds = 'first'),
        second = second + (NEW.feeds = 'second') - (OLD.feeds = 'second'),
        neither = neither + (NEW.feeds = 'neither') - (OLD.feeds = 'neither'),
        adjudications = adjudications + (NEW.feeds = 'adjudication') - (OLD.feeds = 'adjudication'),
        turn = (SELECT max(turn) + 1 FROM items)
    WHERE number = NEW.item;
END;
INSERT INTO meta VALUES ('settings', '{"overlap": 2}'), ('seed', '7'), ('project', 'p1'), ('secret', '00');
INSERT INTO raters (number, alias, is_adjudicator, is_imported, created) VALUES (1, 'ann', 0, 0, 5.0), (2, 'ben', 0, 0, 6.0);
INSERT INTO items (number, id, purpose, round, body, turn) VALUES (1, 'i1', 'label', '',
    '{"answers":[{"policy":"a","sampling":{},"seed":null,"text":"yes"},{"policy":"b","sampling":{},"seed":null,"text":"no"}],"explanation":"","extra":{},"gold":null,"group":"","id":"i1","prompt":"why?","purpose":"label","round":"","source":""}', 1);
INSERT INTO votes (id, item, rater, choice, is_swapped, seconds, guideline, time, is_repeat, is_adjudication, note, feeds)
VALUES ('v1', 1, 1, 'first_much', 0, 2.5, NULL, 10.0, 0, 0, '{"comment":"","reasons":["clear"]}', 'first');
PRAGMA application_id = 1380730950;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
