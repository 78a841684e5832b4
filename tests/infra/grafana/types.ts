import type { AnnotationQuery, Dashboard, Panel, RowPanel } from "@grafana/schema";

// A type as JSON has it: the values of an enum stand for its members.
export type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Json<Item>[]
    : T extends object
      ? { [Key in keyof T]: Json<T[Key]> }
      : T;

// Prometheus's own key of an annotation, which the schema leaves to the data source.
type Annotation = AnnotationQuery & { expr: string };

export type AnnotatedDashboard = Omit<Dashboard, "annotations"> & {
  annotations: { list: Annotation[] };
};
export type PanelOf<Options, Custom> = Omit<Panel<Options, Custom>, "options"> & {
  options: Options;
};
export type Row = RowPanel;
