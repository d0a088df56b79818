-- Settings of the StartupMessage (work_mem, DateStyle, TimeZone, application_name) and of the session after it.
\pset pager off
SELECT name, setting FROM pg_settings
 WHERE name IN ('work_mem', 'DateStyle', 'TimeZone', 'application_name') ORDER BY name;
SET work_mem = '123kB';
SET enable_seqscan = off;
RESET enable_seqscan;
SHOW work_mem;
RESET work_mem;
SHOW work_mem;
SET DateStyle = 'ISO';
SET TimeZone = 'UTC';
RESET DateStyle;
SELECT '2024-02-29 12:00:00+00'::timestamptz;
-- To what the server began with, and back: it reports nothing new.
SET DateStyle = 'ISO, MDY';
RESET DateStyle;
SHOW DateStyle;
SET application_name = 'another';
RESET ALL;
SHOW application_name;
SELECT '2024-02-29 12:00:00+00'::timestamptz;
SET TimeZone = 'UTC';
SET TimeZone TO DEFAULT;
SHOW TimeZone;
DISCARD ALL;
SHOW work_mem;
SHOW DateStyle;
