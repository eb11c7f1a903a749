-- PostgreSQL 19: publications of sequences and with exceptions, a subscription by foreign server.
CREATE PUBLICATION counters FOR ALL SEQUENCES; CREATE PUBLICATION but_two FOR ALL TABLES EXCEPT (TABLE app.children, "-dash \back"."-rf");
CREATE USER MAPPING FOR postgres SERVER "far ""away" OPTIONS (user 'u', password 'p');
CREATE SUBSCRIPTION by_server SERVER "far ""away" PUBLICATION p1 WITH (connect = false, slot_name = 'no_slot_2');

