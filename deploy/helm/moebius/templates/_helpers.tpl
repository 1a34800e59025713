{{- define "moebius.labels" -}}
app.kubernetes.io/name: moebius
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What the chart knows better than who wrote the values. */}}
{{- define "moebius.config" -}}
{{- $own := dict
  "http" (dict "host" "0.0.0.0" "port" 8000 "drain_timeout_ms" 20000
    "api_keys_file" "/run/moebius/keys/api.keys")
  "admin" (dict "host" "127.0.0.1" "port" 8001)
  "journal" (dict "dir" "/var/lib/moebius/journal")
  "model" (dict "path" (ternary "/models" "models/verse-moe" (ne .Values.model.claim "")))
-}}
{{- if gt (int .Values.gpus) 0 -}}
{{- $_ := set $own "workers" (dict "device" "cuda") -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .Values.config) $own | toYaml }}
{{- end }}
