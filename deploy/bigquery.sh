#!/usr/bin/env bash
# Make what a derived collection needs to be a table in BigQuery: topic, table, subscription, and a dead-letter topic
# for rows that BigQuery refuses. What exists is left as it is, so that it can be run again. See docs/bigquery.md.
#
#   PROJECT=my-project DATASET=shop LOCATION=EU deploy/bigquery.sh order_lines
#
# It wants `gcloud` and `bq`, logged in with the right to make all that, and `distributary` with the configuration of
# the worker (COMMAND names another command: "python -m distributary"). The topic is the one in
# DerivedCollection(..., publish="...", format="bigquery"), one for each collection.

set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: PROJECT=... DATASET=... [LOCATION=EU] [TOPIC=...] $0 COLLECTION" >&2
  exit 2
fi

collection=$1
project=${PROJECT:?name the project}
dataset=${DATASET:?name the dataset}
location=${LOCATION:-EU}
topic=${TOPIC:-$collection}
read -r -a distributary <<< "${COMMAND:-distributary}"

table=$project.$dataset.$collection
subscription=$topic-bigquery
dead=$topic-bigquery-dead

number=$(gcloud projects describe "$project" --format='value(projectNumber)')
agent=serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com

make_topic() {
  gcloud pubsub topics describe "$1" --project="$project" > /dev/null 2>&1 ||
    gcloud pubsub topics create "$1" --project="$project"
}

make_subscription() {
  gcloud pubsub subscriptions describe "$1" --project="$project" > /dev/null 2>&1 ||
    gcloud pubsub subscriptions create "$@" --project="$project"
}

# The topic that the worker publishes to, and one for refused rows, which nobody keeps without a subscription.
make_topic "$topic"
make_topic "$dead"
make_subscription "$dead" --topic="$dead" --message-retention-duration=31d --expiration-period=never

# The table, by which Pub/Sub must be allowed to write before it takes the subscription.
bq --project_id="$project" show "$project:$dataset" > /dev/null 2>&1 ||
  bq --project_id="$project" --location="$location" mk --dataset "$project:$dataset"
"${distributary[@]}" bigquery-schema "$collection" --ddl --table "$table" |
  bq --project_id="$project" --location="$location" query --use_legacy_sql=false
bq --project_id="$project" add-iam-policy-binding --member="$agent" --role=roles/bigquery.dataEditor \
  "$project:$dataset.$collection"
gcloud pubsub topics add-iam-policy-binding "$dead" --project="$project" \
  --member="$agent" --role=roles/pubsub.publisher > /dev/null

# Columns are written by name; a row that does not fit is refused and, after some attempts, goes to the other topic.
make_subscription "$subscription" --topic="$topic" \
  --bigquery-table="$project:$dataset.$collection" --use-table-schema \
  --dead-letter-topic="$dead" --max-delivery-attempts=5 --expiration-period=never
gcloud pubsub subscriptions add-iam-policy-binding "$subscription" --project="$project" \
  --member="$agent" --role=roles/pubsub.subscriber > /dev/null

echo "Rows of $collection go from topic $topic to $table; refused ones wait in subscription $dead."
